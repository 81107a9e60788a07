"""What a node makes of strangers, of peers that do not belong, and of addresses that lead nowhere; and what it says."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import pathlib
import shutil
import socket
import struct
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

import aioraft
from machines import Adder
from processes import DEADLINE_S, Process, make_random, reserved_addresses, three_processes
from waiting import until

pytestmark = pytest.mark.asyncio

QUICK = aioraft.Config(election_timeout=0.3, heartbeat_interval=0.03, close_timeout=1.0)
IN_FLIGHT = 8
# As in src/transport: what a handshake's frame begins with, and the bounds on strangers.
HEADER = struct.Struct("<IBBQ")
HELLO, REFUSE, HANDSHAKE_FORMAT = 1, 3, 1
PER_ADDRESS_MAX = 64
A_FEW_FILES = 10  # of the connections among the nodes, which come and go


# Strangers


def hello(to: int, *, version: int = 1, cluster: bytes = b"default") -> bytes:
    """What a node that calls itself the next one says to node `to`; see src/transport/handshake.rs."""
    body = struct.pack("<BBB", version, version, 1) + bytes(32) + struct.pack("<5Q", 1, 1 + to % 3, to, 1, 1)
    body += b"".join(struct.pack("<I", len(text)) + text for text in (cluster, b"host:1", b"")) + bytes(24)
    return HEADER.pack(len(body), HANDSHAKE_FORMAT, HELLO, 0) + body


def strangers(number: int) -> dict[str, tuple[bytes, str | None]]:
    """What strangers say to node `number`, and what they are told: None if they are waited for."""
    return {
        "garbage": (os.urandom(4096).replace(b"\0", b"x"), "this is no aioraft peer"),
        "http": (b"GET / HTTP/1.1\r\nHost: node\r\n\r\n", "this is no aioraft peer"),
        "4 GB announced": (HEADER.pack(2**32 - 1, HANDSHAKE_FORMAT, HELLO, 0), "4294967295 bytes was announced"),
        "half a frame, and silence": (hello(number)[:70], None),
        "silence": (b"", None),
        "another version": (hello(number, version=9), "speaks protocol versions 9 to 9"),
        "another cluster": (hello(number, cluster=b"other"), 'belongs to cluster "other", this is cluster "default"'),
    }


def figures(process: Process) -> dict[str, int]:
    """What the process takes of the machine."""
    assert process._process is not None
    folder = pathlib.Path(f"/proc/{process._process.pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return {
        "rss_kib": int(status["VmRSS"].split()[0]),
        "threads": int(status["Threads"]),
        "files": len(list((folder / "fd").iterdir())),
    }


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
async def test_strangers_on_the_port_cost_nothing_and_are_told_why(tmp_path: pathlib.Path) -> None:
    chance = make_random()
    async with three_processes(tmp_path, chance.randrange(10**9)) as processes:
        one = chance.choice(processes.all)
        await processes.ask(processes.all, "load", in_flight=IN_FLIGHT)
        await processes.more(processes.all, 200)
        before = figures(one)
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                for what, (says, answer) in strangers(one.number).items():
                    stranger = stack.enter_context(socket.create_connection(one.address, timeout=DEADLINE_S))
                    stranger.sendall(says)
                    if answer is None:
                        continue  # it says nothing more, and hears nothing
                    heard = await asyncio.to_thread(heard_by, stranger)
                    if what != "garbage" or heard:
                        assert HEADER.unpack_from(heard)[2] == REFUSE, (what, heard)
                        assert answer.encode() in heard, (what, heard)
            after = figures(one)
            await until(
                functools.partial(one.said, "a connection that did not finish its handshake"), "the silence to end"
            )
        await processes.more(processes.all, 200)
        assert after["threads"] == before["threads"]
        assert after["files"] <= before["files"] + PER_ADDRESS_MAX + A_FEW_FILES
        assert after["rss_kib"] < before["rss_kib"] + 32 * 1024, "the load's log grows meanwhile, by far less"
        # What is no frame is one reason, whatever it is.
        for answer in ("this is no aioraft peer", "speaks protocol versions 9 to 9", "this is cluster"):
            await until(functools.partial(one.said, answer), f"node {one.number} to say {answer!r}")
            lines = [line for line in one.log.read_text().splitlines() if answer in line]
            assert len(lines) <= 4, f"{answer!r} was said {len(lines)} times in a few seconds"
        await processes.stop_load()
        await processes.assert_counted_once()


def heard_by(stranger: socket.socket) -> bytes:
    heard = b""
    with contextlib.suppress(ConnectionError):  # what it said beyond is not read
        while part := stranger.recv(4096):
            heard += part
    return heard


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
async def test_a_thousand_idle_connections_cost_little_and_keep_no_peer_out(tmp_path: pathlib.Path) -> None:
    chance = make_random()
    async with three_processes(tmp_path, chance.randrange(10**9)) as processes:
        one, other, _ = chance.sample(processes.all, 3)
        await processes.ask(processes.all, "propose", count=100)
        before = figures(one)
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(socket.create_connection(one.address)) for _ in range(1000)]
            # The oldest are dropped for the newest, until a bounded number is left.
            for dropped in idle[: 1000 - PER_ADDRESS_MAX]:
                await asyncio.to_thread(is_dropped, dropped)
            during = figures(one)
            assert one.said("dropped the oldest of many connections that did not finish their handshake")
            await other.kill()
            await processes.start()
            back = f"connected to node {other.number} "
            await until(lambda: one.log.read_text().count(back) == 2, "the peer to be back")
            for results in await processes.ask(processes.all, "propose", count=100):
                assert results == [1] * 100
        assert during["files"] <= before["files"] + PER_ADDRESS_MAX + A_FEW_FILES
        assert during["threads"] == before["threads"]
        assert during["rss_kib"] < before["rss_kib"] + 8 * 1024
        await processes.assert_counted_once()


def is_dropped(connection: socket.socket) -> None:
    connection.settimeout(DEADLINE_S)
    with contextlib.suppress(ConnectionError):
        assert connection.recv(1) == b""


# Peers that do not belong


class Nodes:
    """Nodes in this process, each with a directory of its own, and what they log."""

    def __init__(self, folder: pathlib.Path, members: dict[int, str], log: pytest.LogCaptureFixture) -> None:
        self.folder = folder
        self.members = members
        self.log = log
        self.running: list[aioraft.Node[int]] = []

    def data_dir(self, number: int) -> pathlib.Path:
        return self.folder / f"node-{number}"

    async def start(self, number: int, **arguments: Any) -> aioraft.Node[int]:
        settings: dict[str, Any] = {
            "id": number,
            "members": self.members,
            "data_dir": self.data_dir(number),
            "state_machine": Adder(),
            "config": QUICK,
        }
        node: aioraft.Node[int] = aioraft.Node(**(settings | arguments))
        await node.start()
        self.running.append(node)
        return node

    async def start_all(self, *numbers: int) -> list[aioraft.Node[int]]:
        nodes = [await self.start(number) for number in numbers or self.members]
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*(node.ready() for node in nodes))
        return nodes

    async def close(self, *nodes: aioraft.Node[int]) -> None:
        for node in nodes or tuple(self.running):
            self.running.remove(node)
            await node.aclose()

    def said(self, number: int, text: str, **fields: Any) -> list[logging.LogRecord]:
        """What node `number` logged that contains `text`, with these fields."""
        fields["node"] = number
        return [
            record
            for record in self.log.records
            if text in record.getMessage() and fields.items() <= vars(record).get("aioraft", {}).items()
        ]

    async def says(self, number: int, text: str, **fields: Any) -> list[logging.LogRecord]:
        await until(lambda: bool(self.said(number, text, **fields)), f"node {number} to say {text!r} with {fields}")
        return self.said(number, text, **fields)

    async def both_say(self, one: int, other: int, text: str) -> None:
        """Both log it, and each names the other."""
        await self.says(one, text, peer=other)
        await self.says(other, text, peer=one)


@pytest_asyncio.fixture
async def nodes(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Nodes]:
    caplog.set_level(logging.INFO, logger="aioraft")
    with reserved_addresses(3) as members:
        nodes = Nodes(tmp_path, members, caplog)
        try:
            yield nodes
        finally:
            await nodes.close()


def trouble(node: aioraft.Node[int], peer: int) -> str:
    (found,) = (other.trouble for other in node.status().peers if other.id == peer)
    return found or ""


async def test_nodes_of_two_clusters_refuse_each_other(nodes: Nodes) -> None:
    one, two = await nodes.start(1), await nodes.start(2, cluster="other")
    await nodes.both_say(1, 2, 'node 2 belongs to cluster "other", this is cluster "default"')
    await nodes.both_say(1, 2, 'node 1 belongs to cluster "default", this is cluster "other"')
    for node, peer in ((one, 2), (two, 1)):
        await until(lambda node=node, peer=peer: "check cluster=" in trouble(node, peer), "the status to say so")  # type: ignore[misc]


async def test_nodes_with_different_members_refuse_each_other(nodes: Nodes) -> None:
    await nodes.start(1)
    await nodes.start(2, members=nodes.members | {3: "elsewhere.invalid:7400"})
    lists = ", ".join(f"{number}={address}" for number, address in nodes.members.items())
    await nodes.both_say(1, 2, f"the nodes were started with different members: here [{lists}]")
    await nodes.both_say(1, 2, "3=elsewhere.invalid:7400")


async def test_a_node_that_lists_itself_under_another_address_is_told(nodes: Nodes) -> None:
    port = nodes.members[1].rpartition(":")[2]
    one = await nodes.start(1, members=nodes.members | {2: f"localhost:{port}"})
    await nodes.says(1, "node 1 lists itself under another address: correct its list of members", peer=2)
    await until(lambda: "lists itself" in trouble(one, 2), "the status to say so")


async def test_a_node_that_is_no_member_is_refused(nodes: Nodes) -> None:
    await nodes.start_all()
    with reserved_addresses(1) as free:
        await nodes.start(4, members=nodes.members | {4: free[1]})
        for peer in nodes.members:
            await nodes.both_say(peer, 4, "node 4 is not a member of this cluster")


async def test_a_wiped_disk_is_refused_by_all(nodes: Nodes) -> None:
    *others, three = await nodes.start_all()
    await others[0].propose(b"1")
    await nodes.close(three)
    shutil.rmtree(nodes.data_dir(3))
    wiped = await nodes.start(3)
    for peer in (1, 2):
        await nodes.both_say(peer, 3, "node 3 has another data directory than the one this cluster was formed with")
    assert await others[0].propose(b"1") == 2
    assert wiped.status().role == "forming"
    with pytest.raises(
        aioraft.ReadTimeoutError, match=r"the cluster is not formed yet.*node 1: .*another data directory"
    ):
        await wiped.ready(timeout=0.1)


async def test_a_cloned_disk_is_refused_while_the_first_goes_on(nodes: Nodes) -> None:
    *others, three = await nodes.start_all()
    await nodes.close(three)
    shutil.copytree(nodes.data_dir(3), nodes.folder / "clone")
    (three,) = await nodes.start_all(3)
    await until(lambda: all(peer.connected for peer in three.status().peers), "the first to be known to all")
    with reserved_addresses(1) as free:
        clone = await nodes.start(3, data_dir=nodes.folder / "clone", listen=free[1], advertise=free[1])
        for peer in (1, 2):
            await nodes.both_say(peer, 3, "two processes run as node 3, from copies of one data directory")
        assert await others[0].propose(b"1") == 1
        assert await three.propose(b"1") == 2
        assert clone.status().commit < three.status().commit
        with pytest.raises(aioraft.ReadTimeoutError):
            await clone.read_barrier(timeout=0.1)


@pytest.mark.parametrize("copied", ["while it was down", "while it ran"])
async def test_a_copy_put_back_is_refused_by_peers_that_were_restarted_since(nodes: Nodes, copied: str) -> None:
    *others, three = await nodes.start_all()
    await three.propose(b"1")
    if copied == "while it was down":
        await nodes.close(three)
        shutil.copytree(nodes.data_dir(3), nodes.folder / "older")
        for _ in range(2):
            (three,) = await nodes.start_all(3)
            await until(lambda: all(peer.connected for peer in three.status().peers), "all to meet it")  # noqa: B023
            await nodes.close(three)
        sentence = "node 3 comes with boot 2, but boot 3 was seen of it: its data directory was rolled back or copied"
    else:
        shutil.copytree(nodes.data_dir(3), nodes.folder / "older")
        assert [await node.propose(b"1") for node in (*others, three)] == [2, 3, 4]
        await nodes.close(three)
        sentence = "node 3 starts without what it had on its disk before"
    await until(lambda: not any(trouble(node, 3) == "" for node in others), "node 3 to be gone")
    await nodes.close()
    shutil.rmtree(nodes.data_dir(3))
    (nodes.folder / "older").rename(nodes.data_dir(3))

    one, _ = await nodes.start_all(1, 2)
    back = await nodes.start(3)
    for peer in (1, 2):
        await nodes.both_say(peer, 3, sentence)
        await until(lambda peer=peer: sentence in trouble(back, peer), "its status to say so")  # type: ignore[misc]
    await one.propose(b"1")
    assert back.status().commit < one.status().commit


# Addresses


async def test_a_node_that_moves_is_found_where_it_says_it_is(nodes: Nodes) -> None:
    *_, three = await nodes.start_all()
    await nodes.close(three)
    with reserved_addresses(1) as free:
        moved = await nodes.start(3, listen=free[1], advertise=free[1])
        for peer in (1, 2):
            await nodes.says(peer, f"node 3 is reached at {free[1]} from now on", peer=3)
        await moved.ready(timeout=DEADLINE_S)
        assert await moved.propose(b"1") == 1


async def test_a_name_that_has_no_address_is_named_and_tried_again(nodes: Nodes) -> None:
    one = await nodes.start(1, members=nodes.members | {2: "node-2.invalid:7400"})
    await nodes.says(1, "cannot reach node 2, still trying: node-2.invalid:7400 cannot be looked up", peer=2)
    await until(lambda: "cannot be looked up" in trouble(one, 2), "the status to say so")
    # It comes to be where it is, and says so itself.
    members = nodes.members | {2: "node-2.invalid:7400"}
    two = await nodes.start(2, members=members, listen=nodes.members[2], advertise=nodes.members[2])
    await nodes.start(3, members=members)
    await asyncio.wait_for(asyncio.gather(one.ready(), two.ready()), DEADLINE_S)
    assert await one.propose(b"1") == 1
    await until(lambda: trouble(one, 2) == "", "no more trouble")


# What is said


async def test_errors_before_formation_name_who_is_missing_and_why(nodes: Nodes) -> None:
    one = await nodes.start(1)
    await until(lambda: all("Connection refused" in trouble(one, peer) for peer in (2, 3)), "both to be dialled")
    missing = (
        rf"not formed yet.*node 2: connecting to {nodes.members[2]} failed.*node 3: connecting to {nodes.members[3]}"
    )
    with pytest.raises(aioraft.ProposalTimeoutError, match=missing) as caught:
        await one.propose(b"1", timeout=0.05)
    assert caught.value.outcome is aioraft.Outcome.NOT_COMMITTED
    for wait in (one.ready, one.read_barrier, one.wait_for_leader):
        with pytest.raises(aioraft.ReadTimeoutError, match=missing):
            await wait(timeout=0.05)
    await nodes.start_all(2, 3)
    await one.ready(timeout=DEADLINE_S)
    await until(lambda: trouble(one, 2) == trouble(one, 3) == "", "no more trouble")


async def test_errors_without_a_majority_name_who_cannot_be_reached(nodes: Nodes) -> None:
    one, *others = await nodes.start_all()
    await nodes.close(*others)
    await until(lambda: all("Connection refused" in trouble(one, peer) for peer in (2, 3)), "both to be dialled again")
    await until(lambda: one.status().leader is None, "the leader to be missed")
    with pytest.raises(aioraft.ReadTimeoutError, match=r"no leader; not connected to node 2: .*; node 3: "):
        await one.read_barrier(timeout=0.05)
    with pytest.raises(aioraft.ProposalTimeoutError, match=r"no leader; not connected to node 2: .*; node 3: "):
        await one.propose(b"1", timeout=0.05)


async def test_each_connection_is_said_once_and_a_good_end_is_no_warning(nodes: Nodes) -> None:
    one, two, _ = await nodes.start_all()
    await until(lambda: all(peer.connected for peer in one.status().peers), "node 1 to be connected to all")
    await nodes.close(two)
    (left,) = await nodes.says(1, "node 2 left: the peer closed in good order", peer=2)
    assert left.levelno == logging.INFO
    assert [record.levelno for record in nodes.said(1, "connected to node ")] == [logging.INFO] * 2
    assert not nodes.said(1, "lost"), "nothing was"


async def test_a_bad_end_is_a_warning(tmp_path: pathlib.Path) -> None:
    async with three_processes(tmp_path, make_random().randrange(10**9)) as processes:
        one, two, _ = processes.all
        await two.kill()
        await until(lambda: one.said("connection to node 2 lost"), "node 1 to miss it")
        lines = one.log.read_text().splitlines()
        assert [" WARNING " in line for line in lines if "connection to node 2 lost" in line] == [True]
        assert not [line for line in lines if " aioraft.raft " in line], "raft-rs' own news is for debugging"


async def test_every_record_names_its_node_and_its_peer(nodes: Nodes) -> None:
    nodes.log.set_level(logging.DEBUG, logger="aioraft")
    *_, three = await nodes.start_all()
    await three.propose(b"1")
    await nodes.close(three)
    await nodes.says(1, "node 3 left", peer=3)
    core = ("aioraft.driver", "aioraft.transport", "aioraft.storage", "aioraft.raft")
    records = [record for record in nodes.log.records if record.name in core]
    assert {record.name for record in records} >= {"aioraft.driver", "aioraft.transport", "aioraft.raft"}
    for record in records:
        fields = vars(record)["aioraft"]
        assert fields["node"] in nodes.members, record.getMessage()
        if record.name == "aioraft.driver" and " leads in term " in record.getMessage():
            assert fields["group"] == 1
        if record.name == "aioraft.raft":
            assert record.levelno <= logging.DEBUG or record.levelno >= logging.WARNING, record.getMessage()


async def test_the_shape_of_a_handshake_is_the_one_that_strangers_imitate() -> None:
    assert HEADER.size == 14
    assert len(hello(1)) == HEADER.size + 3 + 32 + 40 + 3 * 4 + len(b"defaulthost:1") + 24


# Forming the cluster over connections that lose what they carry


async def frame(reader: asyncio.StreamReader) -> bytes:
    header = await reader.readexactly(HEADER.size)
    return header + await reader.readexactly(HEADER.unpack(header)[0])


async def test_a_word_on_the_formation_that_a_connection_has_lost_is_said_again(tmp_path: pathlib.Path) -> None:
    """What node 1 says to node 2 is lost behind the handshake; node 2's own connection holds. Then the first breaks."""
    swallowed: list[asyncio.StreamWriter] = []
    passing = asyncio.Event()
    with reserved_addresses(2) as listening:
        host, port = listening[2].rsplit(":", 1)

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                there_reader, there_writer = await asyncio.open_connection(host, int(port))
                back = asyncio.ensure_future(pump(there_reader, writer))
                if not passing.is_set():
                    with contextlib.suppress(asyncio.IncompleteReadError, OSError):
                        for _ in range(2):  # Hello, Confirm
                            there_writer.write(await frame(reader))
                        swallowed.append(writer)
                        while await reader.read(65536):
                            pass
                else:
                    await pump(reader, there_writer)
                there_writer.close()
                writer.close()
                await asyncio.wait([back])

        proxy = await asyncio.start_server(carry, "127.0.0.1", 0)
        to_two = "{}:{}".format(*proxy.sockets[0].getsockname())
        members = {1: listening[1], 2: to_two}
        nodes = [
            aioraft.Node(
                id=number,
                members=members,
                data_dir=tmp_path / str(number),
                state_machine=Adder(),
                listen=listening[number],
                config=QUICK,
            )
            for number in (2, 1)
        ]
        async with nodes[0], nodes[1]:
            await until(lambda: len(swallowed) > 0, "node 1 to be connected by way of the proxy")
            await until(lambda: nodes[1].status().role != "forming", "node 1 to be formed by what node 2 said")
            assert nodes[0].status().role == "forming"
            passing.set()
            for writer in swallowed:
                writer.close()
            assert await nodes[0].propose(b"1", timeout=DEADLINE_S) == 1
        proxy.close()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while part := await reader.read(65536):
            writer.write(part)
            await writer.drain()
    writer.close()
