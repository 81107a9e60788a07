"""`Cluster`: several real nodes in one process."""

from __future__ import annotations

import asyncio
import os
import pathlib
import socket
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Generic, TypeVar

from .._config import Config
from .._errors import NodeClosedError, RaftError
from .._node import Node
from .._state_machine import StateMachine

__all__ = ["TEST_CONFIG", "Cluster"]

R = TypeVar("R")

TEST_CONFIG: Final = Config(election_timeout=0.3, heartbeat_interval=0.03, close_timeout=1.0)
"""The configuration of a `Cluster` that is given none: quick elections, and a quick end."""


class Cluster(Generic[R]):
    """`n` real nodes in this process and event loop, connected over loopback.

    ```python
    async with Cluster(3, Stock) as cluster:
        leader = await cluster.leader()
        await leader.propose(b'["bolt", 5]')
        await cluster.wait_agreement()
    ```

    `factory` is called once for each node, because each needs a state machine of its own. Ports are chosen by the
    system. With a `data_dir` each node has a directory of its own in it; without, the logs are in memory.
    """

    def __init__(
        self,
        n: int,
        factory: Callable[[], StateMachine[R]],
        *,
        config: Config | None = None,
        data_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Nothing is opened before `async with`."""
        if n < 1:
            raise ValueError(f"a cluster of {n} nodes: it needs at least one")
        self._n = n
        self._factory = factory
        self._config = TEST_CONFIG if config is None else config
        self._data_dir = None if data_dir is None else pathlib.Path(data_dir)
        self._nodes: tuple[Node[R], ...] = ()
        self._open = False

    @property
    def nodes(self) -> tuple[Node[R], ...]:
        """The nodes; the first has the id 1."""
        return self._nodes

    @property
    def is_open(self) -> bool:
        """Whether nodes may be running."""
        return self._open

    async def __aenter__(self) -> Cluster[R]:
        """Start all nodes; they listen, and will elect a leader."""
        if self._nodes:
            raise RaftError("this cluster was opened before: make a new one")
        sockets: list[socket.socket] = []
        try:
            for _ in range(self._n):
                sockets.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                sockets[-1].bind(("127.0.0.1", 0))
            members = {
                number: f"127.0.0.1:{listener.getsockname()[1]}" for number, listener in enumerate(sockets, start=1)
            }
            self._nodes = tuple(
                Node(
                    id=number,
                    members=members,
                    data_dir=None if self._data_dir is None else self._data_dir / f"node-{number}",
                    state_machine=self._factory(),
                    listen=listener,
                    cluster="aioraft.testing",
                    config=self._config,
                )
                for number, listener in enumerate(sockets, start=1)
            )
            self._open = True
            for node in self._nodes:
                await node.start()
        except BaseException:
            await self.aclose()
            raise
        finally:
            for listener in sockets:
                listener.close()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all nodes."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close all nodes, those that a test has closed before included."""
        await asyncio.gather(*(node.aclose() for node in self._nodes))
        self._open = False

    async def leader(self, *, timeout: float = 10.0) -> Node[R]:
        """Wait until a node leads and has caught up, and return it; raises TimeoutError after `timeout` seconds."""
        async with asyncio.timeout(timeout):
            return await _first([_leading(node) for node in self._nodes])

    async def wait_agreement(self, *, timeout: float = 10.0) -> int:
        """Wait until every running node has applied all that is committed, and return that index.

        Propose nothing meanwhile. Raises TimeoutError after `timeout` seconds.
        """
        async with asyncio.timeout(timeout):
            while True:
                barriers = (node.read_barrier(timeout=None) for node in self._nodes)
                ends = await asyncio.gather(*barriers, return_exceptions=True)
                running = [node for node, end in zip(self._nodes, ends, strict=True) if _answered(end)]
                status = [node.status() for node in running]
                if not running:
                    raise RaftError("every node of this cluster is closed: there is no state to agree on")
                applied = {one.python_applied for one in status}
                if applied == {max(one.commit for one in status)}:
                    return applied.pop()


def _answered(end: int | BaseException) -> bool:
    """Whether a node that was asked for a barrier is one of the running ones."""
    if isinstance(end, BaseException) and not isinstance(end, NodeClosedError):
        raise end
    return not isinstance(end, NodeClosedError)


async def _leading(node: Node[R]) -> Node[R]:
    async for _ in node.leading():
        return node
    # A closed node leads no more; let the others answer.
    never: asyncio.Future[Node[R]] = asyncio.get_running_loop().create_future()
    return await never


async def _first(waits: list[Awaitable[Node[R]]]) -> Node[R]:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
