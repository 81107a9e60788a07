"""One node of `aioraft bench`, in a process of its own; its last argument is JSON, its words are lines of JSON.

It ends when its standard input does, so with its parent, whatever becomes of that.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from typing import Any, NoReturn

import aioraft

from ._bench_config import load_config
from ._latencies import Latencies

__all__ = ["main"]

_WARM_UP_S = 0.5
_PROGRESS_S = 1.0
_VALUES, _VALUES_BYTES = 256, 8 << 20


class _Nothing(aioraft.StateMachine[None]):
    def apply(self, entry: aioraft.Entry) -> None:
        del entry


async def main(given: dict[str, Any]) -> None:
    """Be the node until standard input ends."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    members = {int(number): address for number, address in given["members"].items()}
    node = aioraft.Node(
        id=given["id"],
        members=members,
        data_dir=given["data_dir"],
        state_machine=_Nothing(),
        config=load_config(given["config"]),
    )
    async with node:
        reporting = asyncio.create_task(_report_leader(node))
        async for line in lines:
            await _load(node, **json.loads(line))
        reporting.cancel()


async def _report_leader(node: aioraft.Node[None]) -> None:
    async for newest in node.leadership():
        _say(leader=newest.leader)


async def _load(node: aioraft.Node[None], *, in_flight: int, value_bytes: int, seconds: float) -> None:
    different = max(1, min(_VALUES, _VALUES_BYTES // value_bytes))
    values = itertools.cycle([os.urandom(value_bytes) for _ in range(different)])
    latencies = Latencies()
    begin = time.perf_counter() + _WARM_UP_S
    end = begin + seconds

    async def client() -> None:
        while (start := time.perf_counter()) < end:
            await node.propose(next(values))
            now = time.perf_counter()
            if begin <= now < end:
                latencies.add(now - start)

    async def progress() -> None:
        while True:
            await asyncio.sleep(_PROGRESS_S)
            _say(answered=len(latencies))

    telling = asyncio.create_task(progress())
    try:
        await asyncio.gather(*(client() for _ in range(in_flight)))
    finally:
        telling.cancel()
    percentiles = latencies.percentiles_ms(50, 90, 99, 99.9) if len(latencies) else {}
    _say(proposals=len(latencies), latency_ms=percentiles, histogram=latencies.histogram_ms())


def _say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _run() -> NoReturn:
    try:
        asyncio.run(main(json.loads(sys.argv[1])))
    except aioraft.RaftError as error:
        sys.exit(str(error))
    sys.exit(0)


if __name__ == "__main__":
    _run()
