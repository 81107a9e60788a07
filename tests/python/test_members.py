"""The arguments of Node: refused before anything is opened."""

from __future__ import annotations

import socket
from typing import Any

import pytest

import aioraft
from aioraft._errors import shown
from machines import Adder

MEMBERS = {1: "127.0.0.1:7401", 2: "127.0.0.1:7402", 3: "127.0.0.1:7403"}


class NotShown:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def node(**changes: Any) -> aioraft.Node[int]:
    arguments: dict[str, Any] = {"id": 1, "members": MEMBERS, "data_dir": None, "state_machine": Adder()}
    return aioraft.Node(**(arguments | changes))


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1:7400",
        "node-1.example:7400",
        "localhost:1",
        "my_host:7400",
        "[::1]:7400",
        "[fe80::1%eth0]:7400",
        "a.b.:9",
    ],
)
def test_good_addresses(address: str) -> None:
    node(members={1: address})


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("10.0.0.1", "has no port"),
        ("10.0.0.1:", "from 1 to 65535"),
        ("10.0.0.1:0", "from 1 to 65535"),
        ("10.0.0.1:65536", "from 1 to 65535"),
        ("10.0.0.1:-1", "from 1 to 65535"),
        ("10.0.0.1:７", "from 1 to 65535"),  # noqa: RUF001
        ("10.0.0.256:7400", "neither an IP address"),
        ("10.0.0:7400", "neither an IP address"),
        (":7400", "neither an IP address"),
        ("http://a:7400", 'a scheme or a path: it must be "host:port"'),
        ("a b:7400", "neither an IP address"),
        ("-a:7400", "neither an IP address"),
        ("a..b:7400", "neither an IP address"),
        ("host:7400/path", "a scheme or a path"),
        ("a:b:7400", "neither an IP address nor a host name"),
        ("10.0.0.1:" + "9" * 5000, "from 1 to 65535"),
        ("0.0.0.0:7400", r"no other node can dial it; .* listen=\"0\.0\.0\.0:7400\""),
        ("[::]:7400", "no other node can dial it"),
        ("[::ffff:0.0.0.0]:7400", "no other node can dial it"),
        ("224.0.0.1:7400", "the address of many"),
        ("255.255.255.255:7400", "the address of many"),
        ("[ff02::1]:7400", "the address of many"),
        ("::1:7400", r"brackets, such as \"\[::1\]:7400\""),
        ("[10.0.0.1]:7400", "must be an IPv6 address"),
        (7400, "host:port"),
        (("10.0.0.1", 7400), "host:port"),
    ],
    ids=shown,
)
def test_bad_addresses(address: Any, says: str) -> None:
    with pytest.raises(aioraft.ConfigError, match=says) as caught:
        node(members={1: address})
    assert str(caught.value).startswith(f"members[1] = {address!r}"[:200])
    with pytest.raises(aioraft.ConfigError, match=says) as caught:
        node(advertise=address)
    assert str(caught.value).startswith(f"advertise = {address!r}"[:200])


def test_all_addresses_and_any_port_can_be_listened_on() -> None:
    node(listen="0.0.0.0:7400")
    node(listen="[::]:0")


def test_members_are_not_empty() -> None:
    with pytest.raises(
        aioraft.ConfigError, match=r'^members = {} is empty: .* \(id = 1\) too, such as {1: "10\.0\.0\.1'
    ):
        node(members={})


def test_keys_that_are_text_are_told_from_numbers() -> None:
    with pytest.raises(aioraft.ConfigError, match=r"^a key of members = '1': .*; '1' is a text, the number is 1$"):
        node(members={"1": "127.0.0.1:7401"})


@pytest.mark.parametrize("bad", [0, -1, 2**63, 10**5000, "1", "x" * 1000, 1.0, True, None, (1,), NotShown()], ids=shown)
def test_ids(bad: Any) -> None:
    with pytest.raises(aioraft.ConfigError, match=r"^id = "):
        node(id=bad)
    with pytest.raises(aioraft.ConfigError, match="a key of members"):
        node(id=2, members={bad: "127.0.0.1:7401", 2: "127.0.0.1:7402"})


def test_a_node_is_a_member() -> None:
    with pytest.raises(aioraft.ConfigError, match=r"id = 4 is not in members, which has \[1, 2, 3\]"):
        node(id=4)


@pytest.mark.parametrize("twin", ["Host.:7400", "host:7400"])
def test_an_address_belongs_to_one(twin: str) -> None:
    with pytest.raises(aioraft.ConfigError, match=r"members\[2\] = .* is the address of member 1"):
        node(members={1: "host:7400", 2: twin})


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        ("members", ["127.0.0.1:7401"]),
        ("cluster", ""),
        ("cluster", "x" * 256),
        ("cluster", "\ud800"),
        ("data_dir", "\udcff"),
        ("data_dir", "a\0b"),
        ("config", 10**5000),
        ("members", {1: 10**5000}),
        ("cluster", None),
        ("data_dir", ""),
        ("data_dir", 7),
        ("data_dir", b"data"),
        ("listen", "127.0.0.1"),
        ("listen", 7400),
        ("advertise", "127.0.0.1:0"),
        ("config", {"insecure": True}),
        ("state_machine", Adder),
        ("state_machine", object()),
    ],
    ids=shown,
)
def test_other_arguments(argument: str, bad: Any) -> None:
    with pytest.raises(aioraft.ConfigError, match=rf"^{argument}(\[1\])? = ") as caught:
        node(**{argument: bad})
    assert len(str(caught.value)) < 500


def test_sockets_are_checked() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, pytest.raises(aioraft.ConfigError, match="TCP"):
        node(listen=datagrams)
    with socket.socket() as unbound, pytest.raises(aioraft.ConfigError, match="bind the socket first"):
        node(listen=unbound)
    with pytest.raises(aioraft.ConfigError, match="closed"):
        node(listen=unbound)


def test_a_refused_argument_leaves_the_state_machine_free() -> None:
    machine = Adder()
    with pytest.raises(aioraft.ConfigError, match="cluster"):
        node(state_machine=machine, cluster="")
    node(state_machine=machine)
