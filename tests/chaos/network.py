"""The network between the nodes: a proxy that carries everything, as long as and as fast as it is told to.

Every node is reached at a door of the proxy's; who knocks is read from the first thing that a node says. What goes from
one node to another goes its way, whichever of the two has dialled. As in TCP, bytes arrive in order or the connection
breaks; on a way that is held they wait. No privileges are needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections.abc import Iterable, Iterator

CHUNK_BYTES = 64 * 1024
DIALER = struct.Struct("<14x3x32x8xQ")
"""What a Hello begins with (`src/transport/handshake.rs`), up to its sender's id."""


class Way:
    """From one node to another."""

    def __init__(self) -> None:
        self._holders = 0
        self._delays_s: list[float] = []
        self._open = asyncio.Event()
        self._open.set()

    @property
    def is_clear(self) -> bool:
        return self._open.is_set() and not self._delays_s

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let nothing through meanwhile."""
        self._holders += 1
        self._open.clear()
        try:
            yield
        finally:
            self._holders -= 1
            if self._holders == 0:
                self._open.set()

    @contextlib.contextmanager
    def delayed(self, seconds: float) -> Iterator[None]:
        """Be slow meanwhile."""
        self._delays_s.append(seconds)
        try:
            yield
        finally:
            self._delays_s.remove(seconds)

    async def passed(self) -> None:
        """Wait as long as it takes to get through."""
        await asyncio.sleep(sum(self._delays_s))
        await self._open.wait()


class Network:
    """All doors and ways."""

    def __init__(self, listening: dict[int, str], chance: random.Random) -> None:
        self.ways = {(one, other): Way() for one in listening for other in listening if one != other}
        self._listening = listening
        self._random = chance
        self._doors: dict[int, asyncio.Server] = {}
        self._carrying: dict[asyncio.Task[None], tuple[int, int]] = {}

    async def start(self) -> dict[int, str]:
        """Open the doors; return where each node is reached."""
        members: dict[int, str] = {}
        for node in self._listening:

            async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, node: int = node) -> None:
                await self._accept(node, reader, writer)

            door = self._doors[node] = await asyncio.start_server(accept, "127.0.0.1", 0)
            host, port = door.sockets[0].getsockname()
            members[node] = f"{host}:{port}"
        return members

    async def close(self) -> None:
        for door in self._doors.values():
            door.close()
        carrying = list(self._carrying)
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)

    def break_connections(self, ways: Iterable[tuple[int, int]]) -> None:
        """End the connections that take these ways, some of them in the middle of what they carry."""
        broken = set(ways)
        for task, (dialer, target) in self._carrying.items():
            if {(dialer, target), (target, dialer)} & broken:
                task.cancel()

    async def _accept(self, target: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                first = await reader.readexactly(DIALER.size)
                (dialer,) = DIALER.unpack(first)
                self._carrying[task] = dialer, target
                await self._connect(dialer, target, first, reader, writer)
        except asyncio.CancelledError:
            pass  # it was broken; to the server that is no fault
        finally:
            self._carrying.pop(task, None)
            writer.transport.abort()

    async def _connect(
        self, dialer: int, target: int, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        there, back = self.ways[dialer, target], self.ways[target, dialer]
        # A connection needs both ways. Who has given up meanwhile is heard all the same, and late.
        await there.passed()
        await back.passed()
        host, port = self._listening[target].rsplit(":", 1)
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        there_writer.write(first)
        pumps = [self._pump(there, reader, there_writer), self._pump(back, there_reader, writer)]
        tasks = [asyncio.create_task(pump) for pump in pumps]
        try:
            # One end is the end of both: the nodes never close half a connection.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            there_writer.transport.abort()

    async def _pump(self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            try:
                await way.passed()
            except asyncio.CancelledError:
                writer.write(chunk[: self._random.randrange(len(chunk))])  # torn
                raise
            writer.write(chunk)
            await writer.drain()
