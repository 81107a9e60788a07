"""One replica of `soak.py`: a light and steady load of calls that end in every way, on an application that misbehaves.

It speaks the language of `counting_node.py`.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import pathlib
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "python"))

import aioraft
from counting_node import ACKNOWLEDGED, UNKNOWN, Counts, Replica, Sequence, run
from ledger import Ledger

LEFT = "left"
"""The fate of a command whose proposer did not wait for it."""
PAUSE_S = 0.1
"""Between two calls of one worker, on average."""
IMPATIENCE_S = 0.02
"""How long one waits, at most, who does not wait to the end; a proposal takes a few milliseconds."""


class Tally(Counts):
    """Counts in bits, so that its size tells nothing of the node's."""

    def __init__(self) -> None:
        super().__init__()
        self.applied = Ledger()

    def apply(self, entry: aioraft.Entry) -> int:
        is_new = self.applied.add(json.loads(entry.data)["name"])
        self.last_index = entry.index
        self._sequence.add(entry)
        return 1 if is_new else 2

    def snapshot(self) -> Callable[[], bytes]:
        # Said at once, and put together in a thread.
        state = (self.last_index, self._sequence.length, self._sequence.chain.hex(), self.applied.dump())
        return lambda: json.dumps(state).encode()

    def restore(self, data: bytes) -> None:
        self.last_index, length, chain, applied = json.loads(data)
        self._sequence = Sequence(length, bytes.fromhex(chain))
        self.applied = Ledger.load(applied)

    def sequence_so_far(self) -> Sequence:
        return Sequence(self._sequence.length, self._sequence.chain)


class Disturbed(Replica):
    """Proposes, reads and watches without pause, and seldom waits for the end."""

    padding_bytes = (0, 20, 200)

    def __init__(self, node: aioraft.Node[int], machine: Tally, incarnation: str, seed: str) -> None:
        super().__init__(node, machine, incarnation, seed)
        self._tally = machine
        self._read = Sequence()
        self._commits_read = node.commits(after=0)
        self._stopped_readers: collections.deque[aioraft.Commits] = collections.deque(maxlen=100)
        self._ways: dict[Callable[[Awaitable[Any]], Awaitable[Any]], int] = {
            to_the_end: 12,
            self._cancelled: 2,
            self._timed_out: 2,
            self._waited_for: 2,
            self._in_a_failing_group: 1,
        }
        self._disturbances = (self._read_on, self._read_a_while, self._look, self._watch, self._lead, self._hold)

    async def _start_load(self, in_flight: int) -> None:
        await super()._start_load(in_flight)
        self._load += [asyncio.create_task(self._disturb(one)) for one in self._disturbances]
        for task in self._load:
            task.add_done_callback(self._ended)

    async def _disturb(self, disturbance: Callable[[], Awaitable[None]]) -> None:
        try:
            while self._loading:
                await disturbance()
                await self._pause()
        except aioraft.NodeClosedError:
            pass

    # The load

    async def _work(self) -> None:
        while self._loading and await self._propose_somehow():
            await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(self._random.uniform(0, 2 * PAUSE_S))

    async def _propose_somehow(self) -> bool:
        """Propose a command, or a few, and note what became of them; False when this node takes no more."""
        commands = [self._next_command() for _ in range(self._random.choice((1, 1, 1, 5)))]
        datas = [command for _, command in commands]
        deadline_s = self._random.choice((20.0, 20.0, 20.0, self._moment_s()))
        results: list[Any]
        try:
            if len(datas) == 1:
                results = [await self._somehow(self._node.propose(datas[0], timeout=deadline_s))]
            else:
                proposing = self._node.propose_many(datas, timeout=deadline_s, return_exceptions=True)
                results = await self._somehow(proposing)
        except aioraft.RaftError as error:
            results = [error] * len(commands)
        except TimeoutError:
            results = [LEFT] * len(commands)
        for (name, _), result in zip(commands, results, strict=True):
            self._note(name, fate(result))
        return not any(isinstance(result, (aioraft.NodeClosedError, aioraft.FatalError)) for result in results)

    def _moment_s(self) -> float:
        return self._random.uniform(0, IMPATIENCE_S)

    # Ways to wait; who leaves raises TimeoutError

    async def _somehow(self, call: Awaitable[Any]) -> Any:
        (way,) = self._random.choices(list(self._ways), list(self._ways.values()))
        return await way(call)

    async def _cancelled(self, call: Awaitable[Any]) -> Any:
        task = asyncio.ensure_future(call)
        await asyncio.wait([task], timeout=self._moment_s())
        task.cancel()
        await asyncio.wait([task])
        return result_of(task)

    async def _timed_out(self, call: Awaitable[Any]) -> Any:
        async with asyncio.timeout(self._moment_s()):
            return await call

    async def _waited_for(self, call: Awaitable[Any]) -> Any:
        return await asyncio.wait_for(call, self._moment_s())

    async def _in_a_failing_group(self, call: Awaitable[Any]) -> Any:
        async def fail() -> None:
            await asyncio.sleep(self._moment_s())
            raise LookupError

        task = asyncio.ensure_future(call)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(to_the_end(task))
                tasks.create_task(fail())
        except* (LookupError, aioraft.RaftError):
            pass
        return result_of(task)

    # Disturbances

    async def _read_on(self) -> None:
        """Read everything once, however often the wait for it is cancelled."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._moment_s()):
                try:
                    async for entry in self._commits_read:
                        self._read.add(entry)
                except aioraft.Compacted as error:
                    self._start_over(error)

    def _start_over(self, error: aioraft.Compacted) -> None:
        """Go on behind what the state machine holds, as the error says that one can."""
        assert error.restart <= self._tally.last_index
        self._read = self._tally.sequence_so_far()
        self._commits_read = self._node.commits(after=self._tally.last_index)

    async def _read_a_while(self) -> None:
        """Come, read a little, and stop reading; a hundred that have stopped are kept."""
        back = self._random.choice((0, 10, 1000))
        commits = self._node.commits(after=max(0, self._node.status().python_applied - back))
        self._stopped_readers.append(commits)
        last = 0
        with contextlib.suppress(TimeoutError, aioraft.Compacted):
            async with asyncio.timeout(self._moment_s()):
                async for entry in commits:
                    assert entry.index > last, f"commits() gave {entry.index} after {last}"
                    last = entry.index

    async def _look(self) -> None:
        """Read, and wait for a leader."""
        node, deadline_s = self._node, self._moment_s()
        looks: list[Callable[[], Awaitable[Any]]] = [
            lambda: node.read_barrier(timeout=deadline_s),
            lambda: node.ready(timeout=deadline_s),
            lambda: node.wait_for_leader(timeout=deadline_s),
        ]
        with contextlib.suppress(TimeoutError):
            await self._somehow(self._random.choice(looks)())

    async def _watch(self) -> None:
        """Watch who leads, and go away."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._moment_s()):
                async for _ in self._node.leadership():
                    pass

    async def _lead(self) -> None:
        """Work while this node leads, for a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10 * self._moment_s()):
                async for term in self._node.leading():
                    async with term:
                        await self._node.read_barrier()
                        await asyncio.get_running_loop().create_future()

    async def _hold(self) -> None:
        """Hold the event loop, now and then."""
        if self._random.random() < 0.01:
            time.sleep(self._random.uniform(0, 1.5))

    # At the end

    async def _report(self) -> dict[str, Any]:
        await self._node.read_barrier()
        while self._commits_read.position < self._tally.last_index:
            try:
                self._read.add(await anext(self._commits_read))
            except aioraft.Compacted as error:
                self._start_over(error)
        return {
            "applied": self._tally.applied.dump(),
            "sequence": self._tally.sequence(),
            "read": self._read.digest(),
        }


async def to_the_end(call: Awaitable[Any]) -> Any:
    return await call


def result_of(task: asyncio.Future[Any]) -> Any:
    if task.cancelled():
        raise TimeoutError
    return task.result()


def fate(result: Any) -> str:
    """Name what became of a command."""
    if isinstance(result, aioraft.RaftError):
        return UNKNOWN if result.outcome is None else result.outcome.value
    if result == LEFT:
        return LEFT
    return ACKNOWLEDGED if result == 1 else f"applied {result} times"


if __name__ == "__main__":
    run(Disturbed, Tally())
