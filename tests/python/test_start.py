"""What only start() can see: a mistake in the arguments is a ConfigError, a disk that fails a FatalError."""

from __future__ import annotations

import asyncio
import pathlib
import socket
from typing import Any

import pytest

import aioraft
from aioraft.testing import TEST_CONFIG
from machines import Adder

pytestmark = pytest.mark.asyncio


def node(data_dir: pathlib.Path | None, **changes: Any) -> aioraft.Node[int]:
    arguments: dict[str, Any] = {
        "id": 1,
        "members": {1: "127.0.0.1:7401"},
        "data_dir": data_dir,
        "state_machine": Adder(),
        "listen": "127.0.0.1:0",
        "config": TEST_CONFIG,
    }
    return aioraft.Node(**(arguments | changes))


async def test_a_directory_of_another_node_or_cluster(tmp_path: pathlib.Path) -> None:
    async with node(tmp_path) as first:
        await first.propose(b"1")
    members = {1: "127.0.0.1:7401", 2: "127.0.0.1:7402"}
    for changes in ({"cluster": "other"}, {"id": 2, "members": members}):
        with pytest.raises(aioraft.ConfigError, match=r"belongs to node 1 of cluster \"default\".*check id=") as caught:
            await node(tmp_path, **changes).start()
        assert str(caught.value).startswith(f'data_dir = "{tmp_path}": ')
        assert caught.value.outcome is None
    async with node(tmp_path) as again:  # nothing was harmed
        assert await again.propose(b"1") == 2


async def test_members_only_bootstrap_and_then_the_log_knows_better(tmp_path: pathlib.Path) -> None:
    async with node(tmp_path) as first:
        await first.ready(timeout=10)
    for members in ({1: "127.0.0.1:7401", 2: "127.0.0.1:7402"}, {1: "localhost:7499"}):
        async with node(tmp_path, members=members) as again:
            await again.ready(timeout=10)
            assert list(again.members()) == [1]


async def test_a_directory_in_use(tmp_path: pathlib.Path) -> None:
    async with node(tmp_path) as first:
        with pytest.raises(
            aioraft.ConfigError, match=r"is used by another node.*give each node a directory of its own"
        ):
            await node(tmp_path).start()
        assert await first.propose(b"1") == 1


async def test_an_address_in_use_or_open_to_others(tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(aioraft.ConfigError, match=rf"listen = '{listen}': cannot be bound .*name a free address"):
            await node(tmp_path, listen=listen).start()
    with pytest.raises(aioraft.ConfigError, match=r"listen = '0\.0\.0\.0:0' .*Config\(insecure=True\)"):
        await node(tmp_path, listen="0.0.0.0:0").start()
    assert list(tmp_path.iterdir()) == []  # refused before anything was opened


async def test_a_socket_that_another_listens_on(tmp_path: pathlib.Path) -> None:
    with socket.socket() as late, socket.socket() as early:
        for one in (late, early):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        late.bind(("127.0.0.1", 0))
        early.bind(late.getsockname())
        early.listen()
        with pytest.raises(aioraft.ConfigError, match=r"cannot listen on the socket given as listen=.*in use"):
            await node(tmp_path, listen=late).start()


async def test_a_damaged_directory_is_no_mistake_in_the_arguments(tmp_path: pathlib.Path) -> None:
    async with node(tmp_path) as first:
        await first.propose(b"1")
    (tmp_path / "guard").unlink()
    broken = node(tmp_path)
    with pytest.raises(aioraft.FatalError, match="guard is missing") as caught:
        await broken.start()
    assert caught.value.outcome is None  # nothing was proposed
    with pytest.raises(aioraft.NodeClosedError) as closed:
        await broken.propose(b"1")
    assert closed.value.outcome is aioraft.Outcome.NOT_COMMITTED


class Broken(Adder):
    def apply(self, entry: aioraft.Entry) -> int:
        raise OSError("the application's own disk")


async def test_what_a_stopped_node_says_of_each_call() -> None:
    config = aioraft.Config(max_pending_proposals=1, election_timeout=0.3, heartbeat_interval=0.03)
    async with node(None, state_machine=Broken(), config=config) as one:
        await one.ready(timeout=10)
        calls = [one.propose(b"1"), one.propose(b"2"), anext(one.commits())]
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(end) for end in ends] == [aioraft.FatalError] * 3
        outcomes = [getattr(end, "outcome", "-") for end in ends]
        # The first was under way, the second waited for room, the third proposed nothing.
        assert outcomes == [aioraft.Outcome.UNKNOWN, aioraft.Outcome.NOT_COMMITTED, None]
        with pytest.raises(aioraft.FatalError) as late:
            await one.propose(b"3")
        assert late.value.outcome is aioraft.Outcome.NOT_COMMITTED
