"""One replica of `end_to_end.py`: measures when its parent says so.

Standard input: `{"load": in_flight, "seconds": s}`, `{"steady": true}` (propose one after the other until the end).
Standard output: `{"ready": true, "leads": ...}`, `{"rate": ..., "p50_ms": ..., "p99_ms": ...}`, and with `steady`
`{"done_at": monotonic, "term": ...}` for the first proposal of each term.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import aioraft

VALUE = bytes(64)


class Terms(aioraft.StateMachine[int]):
    """Does nothing but say in which term an entry was committed."""

    def apply(self, entry: aioraft.Entry) -> int:
        return entry.term


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


async def load(node: aioraft.Node[int], in_flight: int, seconds: float) -> None:
    latencies_s: list[float] = []
    end = time.perf_counter() + seconds

    async def client() -> None:
        while (start := time.perf_counter()) < end:
            await node.propose(VALUE)
            latencies_s.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(in_flight)))
    elapsed = time.perf_counter() - start
    latencies_s.sort()
    p50, p99 = (latencies_s[int(len(latencies_s) * part)] * 1000 for part in (0.5, 0.99))
    say({"rate": len(latencies_s) / elapsed, "p50_ms": p50, "p99_ms": p99})


async def steady(node: aioraft.Node[int]) -> None:
    newest = 0
    while True:
        term = await node.propose(VALUE, timeout=None)
        if term > newest:
            newest = term
            say({"done_at": time.monotonic(), "term": term})


async def report_leading(node: aioraft.Node[int]) -> None:
    async for newest in node.leadership():
        say({"leader": newest.leader, "term": newest.term})


async def main(number: int, members: dict[int, str], data_dir: str) -> None:
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with (
        aioraft.Node(id=number, members=members, data_dir=data_dir, state_machine=Terms()) as node,
        asyncio.TaskGroup() as tasks,
    ):
        background = [tasks.create_task(report_leading(node))]
        await node.ready()
        say({"ready": True})
        async for line in lines:
            order = json.loads(line)
            if "load" in order:
                await load(node, order["load"], order["seconds"])
            else:
                background.append(tasks.create_task(steady(node)))
        for task in background:
            task.cancel()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), {int(k): v for k, v in json.loads(sys.argv[2]).items()}, sys.argv[3]))
