"""`Cluster`: several real nodes in one process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import random
import socket
from collections.abc import Awaitable, Callable, Generator, Iterable
from types import TracebackType
from typing import Final, Generic, TypeVar

from .._config import Config
from .._core import Faults
from .._errors import FatalError, NodeClosedError, RaftError
from .._node import Node
from .._state_machine import StateMachine, check_factory

__all__ = ["TEST_CONFIG", "Cluster"]

R = TypeVar("R")

TEST_CONFIG: Final = Config(election_timeout=0.3, heartbeat_interval=0.03, close_timeout=1.0)
"""The configuration of a `Cluster` that is given none: quick elections, and a quick end."""


class Cluster(Generic[R]):
    """`n` real nodes in this process and event loop, connected over loopback, and what may go wrong among them.

    ```python
    async with Cluster(3, Stock) as cluster:
        leader = await cluster.leader()
        cluster.isolate(leader.id)
        survivor = await cluster.leader()  # another one
        await survivor.propose(b'["bolt", 5]')
        cluster.heal()
        await cluster.wait_agreement()
    ```

    `factory` is called once for each node, because each needs a state machine of its own. Ports are chosen by the
    system. With a `data_dir` each node has a directory of its own in it, and can be crashed and restarted; without, the
    logs are in memory, and a node that has stopped cannot come back. `seed` decides which messages `drop` loses; None
    draws one (see `Cluster.seed`).

    Faults of the network are those of a network that swallows packets: connections stay up, and nobody is told. All of
    them hold until `heal`.
    """

    def __init__(
        self,
        n: int,
        factory: Callable[[], StateMachine[R]],
        *,
        config: Config | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        seed: int | None = None,
    ) -> None:
        """Nothing is opened before `async with`."""
        if n < 1:
            raise ValueError(f"a cluster of {n} nodes: it needs at least one")
        check_factory(factory)
        self._n = n
        self._factory = factory
        self._config = TEST_CONFIG if config is None else config
        self._data_dir = None if data_dir is None else pathlib.Path(data_dir)
        self._seed = random.getrandbits(32) if seed is None else seed
        self._faults = Faults(self._seed)
        self._members: dict[int, str] = {}
        self._ports: list[socket.socket] = []
        self._nodes: dict[int, Node[R]] = {}
        self._open = False
        self._loop: asyncio.AbstractEventLoop | None = None

    # Its life

    @property
    def nodes(self) -> tuple[Node[R], ...]:
        """The nodes in the order of their ids, which begin with 1; also those that are closed, crashed or removed."""
        return tuple(self._nodes.values())

    @property
    def seed(self) -> int:
        """What decides which messages are lost: give it to another cluster to lose the same ones."""
        return self._seed

    @property
    def is_open(self) -> bool:
        """Whether nodes may be running."""
        return self._open

    async def __aenter__(self) -> Cluster[R]:
        """Start all nodes; they listen, and will elect a leader."""
        if self._nodes:
            raise RaftError("this cluster was opened before: make a new one")
        self._loop = asyncio.get_running_loop()
        try:
            for number in range(1, self._n + 1):
                self._ports.append(_reserved_port())
                self._members[number] = f"127.0.0.1:{self._ports[-1].getsockname()[1]}"
            for number in self._members:
                self._nodes[number] = self._node(number)
            self._open = True
            for node in self._nodes.values():
                await node.start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all nodes."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close all nodes, those that a test has closed before included."""
        await asyncio.gather(*(node.aclose() for node in self._nodes.values()))
        for port in self._ports:
            port.close()
        self._open = False

    def _close_from_outside(self) -> None:
        """Close all nodes where nothing can be awaited: behind a test, whose loop may be gone with it."""
        if not self._open or self._loop is None:
            return
        if not self._loop.is_closed() and not self._loop.is_running() and asyncio._get_running_loop() is None:
            self._loop.run_until_complete(self.aclose())
            return
        # Without its loop a node cannot be closed in order: it ends as if its process were killed, within a moment.
        for number in self._nodes:
            self._faults.crash(number)
        for port in self._ports:
            port.close()
        self._open = False

    def _node(self, number: int) -> Node[R]:
        node = Node(
            id=number,
            members=self._members,
            data_dir=None if self._data_dir is None else self._data_dir / f"node-{number}",
            state_machine=self._factory(),
            cluster="aioraft.testing",
            config=self._config,
        )
        node._faults = self._faults
        node._is_memory_meant = True
        return node

    # What may go wrong

    def partition(self, *groups: Iterable[int]) -> None:
        """Let the nodes of each group hear each other only. A node that is in no group hears nobody.

        It takes the place of an earlier partition, and leaves `delay` and `drop` as they are until `heal`.
        """
        for group in groups:
            if not isinstance(group, Iterable):
                raise ValueError(f"a group of {group!r}: it must be several nodes, such as [1, 2]")
        sides = [frozenset(self._known(number) for number in group) for group in groups]
        for source in self._nodes:
            for target in self._nodes:
                if source != target:
                    self._faults.cut(source, target, not any({source, target} <= side for side in sides))

    def isolate(self, number: int) -> None:
        """Let nobody hear node `number`, and let it hear nobody."""
        for other in self._others(number):
            self._faults.cut(number, other)
            self._faults.cut(other, number)

    def cut(self, source: int, target: int) -> None:
        """Let node `target` hear node `source` no more; the other way stays as it is."""
        self._faults.cut(self._known(source), self._known(target))

    def delay(self, seconds: float, *, source: int | None = None, target: int | None = None) -> None:
        """Let messages arrive later, in their order: all of them, or those of a source, or to a target."""
        for one, other in self._ways(source, target):
            self._faults.delay(one, other, seconds)

    def drop(self, share: float, *, source: int | None = None, target: int | None = None) -> None:
        """Lose this share of the messages, between 0 and 1: of all of them, or of those of a source, or to a target."""
        if not 0 <= share <= 1:
            raise ValueError(f"drop({share}): it must be a share of all messages, between 0 and 1")
        for one, other in self._ways(source, target):
            self._faults.drop(one, other, share)

    def heal(self) -> None:
        """End what `partition`, `isolate`, `cut`, `delay` and `drop` began. Nodes that hang or have crashed stay so."""
        self._faults.heal()

    @contextlib.contextmanager
    def pause_loop(self, number: int) -> Generator[None, None, None]:
        """Let the application of node `number` hang inside the `with`, as if its event loop were blocked.

        Nothing is applied there and none of its calls end, while consensus goes on: if it leads, it still does, and
        `leader` waits for the end of this.
        """
        self._faults.hang(self._known(number), True)
        try:
            yield
        finally:
            self._faults.hang(number, False)

    async def crash(self, number: int) -> None:
        """End node `number` as if its process were killed: what it had fsynced is all that it will know.

        Its calls fail with `FatalError`. Returns when it is gone.
        """
        node = self._nodes[self._known(number)]
        core = node._running
        if core is not None and core.stopped is None:
            self._faults.crash(number)
            with contextlib.suppress(FatalError, NodeClosedError):
                while True:
                    await core.wait_leadership(core.leadership[0])
        await node.aclose()

    async def restart(self, number: int) -> Node[R]:
        """Start node `number` again, from its data directory and with a fresh state machine, and return it.

        Crash it, or close it, first. Raises `RaftError` where the logs are in memory: such a node cannot come back.
        """
        if self._data_dir is None:
            raise RaftError(f"node {number} cannot come back: its log was in memory; give the cluster a data_dir")
        await self._nodes[self._known(number)].aclose()
        self._nodes[number] = node = self._node(number)
        await node.start()
        return node

    # Other members

    async def add(self, number: int | None = None, *, timeout: float = 10.0) -> Node[R]:
        """Have another node join as a learner, under the next id or this one, and return it.

        It is started, and added by whichever node leads. `await node.promote(number)`, of any node, gives it a vote; to
        remove one, `await node.remove(number)` is all that is to be done. Raises TimeoutError after `timeout` seconds
        without a leader, else what `add_learner` does.
        """
        self._check_opened()
        if number is None:
            number = max(self._nodes) + 1
        elif number in self._nodes:
            raise ValueError(f"node {number}: this cluster has, or had, one of that id; no id is used twice")
        self._ports.append(_reserved_port())
        self._members[number] = f"127.0.0.1:{self._ports[-1].getsockname()[1]}"
        self._nodes[number] = node = self._node(number)
        await node.start()
        leader = await self.leader(timeout=timeout)
        await leader.add_learner(number, self._members[number], timeout=timeout)
        return node

    def _known(self, number: int) -> int:
        self._check_opened()
        if number not in self._nodes:
            raise ValueError(f"node {number!r}: this cluster has the nodes {', '.join(map(str, self._nodes))}")
        return number

    def _check_opened(self) -> None:
        if not self._nodes:
            raise RaftError("this cluster was not opened: use it inside `async with`")

    def _states(self) -> str:
        status = (node.status() for node in self._nodes.values())
        return "; ".join(
            f"node {it.id}: {it.role} in term {it.term}, has applied {it.python_applied} of {it.commit}"
            for it in status
        )

    def _others(self, number: int) -> list[int]:
        return [other for other in self._nodes if other != self._known(number)]

    def _ways(self, source: int | None, target: int | None) -> list[tuple[int, int]]:
        sources = self._nodes if source is None else [self._known(source)]
        targets = self._nodes if target is None else [self._known(target)]
        return [(one, other) for one in sources for other in targets if one != other]

    # What to wait for

    async def leader(self, *, timeout: float = 10.0) -> Node[R]:
        """Wait until a node leads that a majority follows, and return it; raises TimeoutError after `timeout` seconds.

        It has applied what was committed before its term. A node that was cut off, and does not know yet that it leads
        no more, is not returned.
        """
        self._check_opened()
        try:
            async with asyncio.timeout(timeout):
                return await _first([_leading(node) for node in self._nodes.values()])
        except TimeoutError:
            raise TimeoutError(f"no node led a majority within {timeout:g} s: {self._states()}") from None

    async def wait_agreement(self, *, timeout: float = 10.0) -> int:
        """Wait until every running node has applied all that is committed, and return that index.

        Propose nothing meanwhile. Raises TimeoutError after `timeout` seconds.
        """
        self._check_opened()
        try:
            async with asyncio.timeout(timeout):
                return await self._agreement()
        except TimeoutError:
            raise TimeoutError(f"the nodes did not agree within {timeout:g} s: {self._states()}") from None

    async def _agreement(self) -> int:
        while True:
            barriers = (node.read_barrier(timeout=None) for node in self._nodes.values())
            ends = await asyncio.gather(*barriers, return_exceptions=True)
            running = [node for node, end in zip(self._nodes.values(), ends, strict=True) if _answered(end)]
            status = [node.status() for node in running]
            if not running:
                raise RaftError("every node of this cluster is closed: there is no state to agree on")
            applied = {one.python_applied for one in status}
            if applied == {max(one.commit for one in status)}:
                return applied.pop()


def _reserved_port() -> socket.socket:
    """Bind a port of the system's choice, without listening: it is given to nobody else while its node is down."""
    port = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    port.bind(("127.0.0.1", 0))
    return port


def _answered(end: int | BaseException) -> bool:
    """Whether a node that was asked for a barrier is one of the running ones."""
    if isinstance(end, BaseException) and not isinstance(end, (NodeClosedError, FatalError)):
        raise end
    return not isinstance(end, BaseException)


async def _leading(node: Node[R]) -> Node[R]:
    with contextlib.suppress(NodeClosedError, FatalError):
        async for term in node.leading():
            async with term:
                await node.read_barrier(timeout=None)  # a majority answers
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
