"""One replica of aioraft, measured from its own process.

    python bench_node.py NUMBER MEMBERS DATA_DIR [snapshots]      # DATA_DIR "" for memory

Standard input, a line of JSON each: `{"load": {...}}` ([load.py](load.py); what: propose, propose_many, read),
`{"repeat": {"calls": ..., "in_flight": ...}}` and `{"steady": true}` (propose one after the other until the end).
Standard output: `{"leader": ..., "term": ...}` whenever that changes, `{"ready": true}`, `{"found": {...}}`,
`{"repeated": calls}`, and with `steady` `{"first": {"term": ..., "done_at": monotonic}}` for the first proposal of each
term.
"""

from __future__ import annotations

import array
import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import aioraft
from load import Call, carry_out, orders, percentile_ms, say

MANY = 256


class Terms(aioraft.StateMachine[int]):
    """Does nothing but say in which term an entry was committed."""

    def apply(self, entry: aioraft.Entry) -> int:
        return entry.term


class Snapshots(Terms):
    """The same with snapshots, so that the log is compacted."""

    def snapshot(self) -> bytes:
        return b""

    def restore(self, data: Any) -> None:
        del data


class TimedLoop(asyncio.SelectorEventLoop):
    """Measures how long the bridge's callback holds the loop: it is the one that `add_reader` is called for."""

    def __init__(self) -> None:
        super().__init__()
        self._held_s = array.array("d")
        self._ran_s = array.array("d")

    def add_reader(self, fd: Any, callback: Callable[..., object], *args: Any) -> None:  # type: ignore[override]
        def timed() -> None:
            start, ran = time.perf_counter(), time.thread_time()
            callback(*args)
            self._ran_s.append(time.thread_time() - ran)
            self._held_s.append(time.perf_counter() - start)

        super().add_reader(fd, timed)

    def drain_ms(self) -> dict[str, float]:
        """What it was since the last time, by the clock and in time of the processor."""
        held_s, self._held_s = self._held_s, array.array("d")
        ran_s, self._ran_s = self._ran_s, array.array("d")
        return {"drain_p999_ms": percentile_ms(held_s, 0.999), "drain_cpu_p999_ms": percentile_ms(ran_s, 0.999)}


async def steady(node: aioraft.Node[int]) -> None:
    newest = 0
    while True:
        term = await node.propose(bytes(64), timeout=None)
        if term > newest:
            newest = term
            say({"first": {"term": term, "done_at": time.monotonic()}})


async def repeat(node: aioraft.Node[int], *, calls: int, in_flight: int) -> None:
    left = iter(range(calls))

    async def client() -> None:
        for _ in left:
            await node.propose(bytes(64))

    await asyncio.gather(*(client() for _ in range(in_flight)))
    say({"repeated": calls})


async def report_leader(node: aioraft.Node[int]) -> None:
    async for newest in node.leadership():
        say({"leader": newest.leader, "term": newest.term})


async def main(loop: TimedLoop, number: int, members: dict[int, str], data_dir: str | None, terms: Terms) -> None:
    async with (
        aioraft.Node(id=number, members=members, data_dir=data_dir, state_machine=terms) as node,
        asyncio.TaskGroup() as tasks,
    ):
        calls: dict[str, list[Call]] = {
            "propose": [node.propose],
            "propose_many": [lambda value: node.propose_many([value] * MANY)],
            "read": [lambda _: node.read_barrier()],
        }
        background = [tasks.create_task(report_leader(node))]
        await node.ready()
        say({"ready": True})
        async for order in orders():
            if "load" in order:
                await carry_out(order, calls, loop.drain_ms)
            elif "repeat" in order:
                await repeat(node, **order["repeat"])
            else:
                background.append(tasks.create_task(steady(node)))
        for task in background:
            task.cancel()


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    with asyncio.Runner(loop_factory=TimedLoop) as runner:
        loop = cast("TimedLoop", runner.get_loop())
        numbered = {int(member): address for member, address in given.items()}
        terms = Snapshots() if sys.argv[4:] == ["snapshots"] else Terms()
        runner.run(main(loop, int(sys.argv[1]), numbered, sys.argv[3] or None, terms))
