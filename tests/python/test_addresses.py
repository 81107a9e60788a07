"""Where members are found: host names, and nodes that are reached elsewhere than they listen."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import socket
from collections.abc import AsyncIterator

import pytest

import aioraft
from aioraft.testing import TEST_CONFIG
from machines import Adder
from processes import reserved_addresses
from waiting import until

pytestmark = pytest.mark.asyncio


class Forwarder:
    """An address that leads to another one, as behind a NAT."""

    def __init__(self) -> None:
        self.target = 0
        self.carried = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            behind, before = await asyncio.open_connection("127.0.0.1", self.target)
            with contextlib.closing(before):
                await asyncio.gather(self._pump(reader, before), self._pump(behind, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self.carried += len(data)
            writer.write(data)
            await writer.drain()
        writer.close()


def make(
    number: int,
    members: dict[int, str],
    data_dir: pathlib.Path,
    listen: str | None = None,
    advertise: str | None = None,
) -> aioraft.Node[int]:
    return aioraft.Node(
        id=number,
        members=members,
        data_dir=data_dir / str(number),
        state_machine=Adder(),
        config=TEST_CONFIG,
        listen=listen,
        advertise=advertise,
    )


async def add_everywhere(nodes: list[aioraft.Node[int]]) -> None:
    before = sum([await node.propose(b"0") for node in nodes[:1]])
    totals = [await node.propose(b"1") for node in nodes]
    assert totals == list(range(before + 1, before + 1 + len(nodes)))


async def test_members_may_be_host_names(tmp_path: pathlib.Path) -> None:
    with reserved_addresses(3) as numbered:
        members = {number: address.replace("127.0.0.1", "localhost") for number, address in numbered.items()}
        for _ in range(2):  # the second time from what the disk holds
            async with contextlib.AsyncExitStack() as stack:
                nodes = [await stack.enter_async_context(make(number, members, tmp_path)) for number in members]
                await add_everywhere(nodes)
                assert {peer.address for node in nodes for peer in node.status().peers} == set(members.values())


async def test_nodes_are_reached_elsewhere_than_they_listen(tmp_path: pathlib.Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        forwarders = {number: Forwarder() for number in (1, 2, 3)}
        members = {
            number: await stack.enter_async_context(forwarder.open()) for number, forwarder in forwarders.items()
        }
        nodes = []
        for number, forwarder in forwarders.items():
            node = await stack.enter_async_context(make(number, members, tmp_path, listen="127.0.0.1:0"))
            forwarder.target = int(node.address.rpartition(":")[2])
            assert node.address not in members.values()
            nodes.append(node)
        await add_everywhere(nodes)
        assert sum(forwarder.carried > 0 for forwarder in forwarders.values()) >= 2  # each pair shares a connection
        assert {peer.address for node in nodes for peer in node.status().peers} == set(members.values())


async def test_a_node_that_has_moved_says_where_it_is(tmp_path: pathlib.Path) -> None:
    with reserved_addresses(3) as members, socket.socket() as new:
        new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        new.bind(("127.0.0.2", 0))
        moved_to = f"127.0.0.2:{new.getsockname()[1]}"
        async with contextlib.AsyncExitStack() as stack:
            nodes = [
                await stack.enter_async_context(make(number, members, tmp_path, **where))
                for number, where in {1: {}, 2: {}, 3: {"listen": moved_to, "advertise": moved_to}}.items()
            ]
            await add_everywhere(nodes)
            for node in nodes[:2]:
                known = {peer.id: peer.address for peer in node.status().peers}
                assert known[3] == moved_to
            with pytest.raises(ConnectionRefusedError):  # nobody is where `members` says
                await asyncio.open_connection(*members[3].rsplit(":", 1))
            # Both ends dial: whoever loses the connection finds node 3 where it said it is.
            await nodes[0].aclose()
            async with make(1, members, tmp_path) as again:
                await add_everywhere([again, *nodes[1:]])
                await until(lambda: all(peer.connected for peer in again.status().peers), "all to be connected")
