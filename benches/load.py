"""The load that every contender is put under: clients that each keep one call in flight, in one asyncio process."""

from __future__ import annotations

import array
import asyncio
import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

# Different ones, so that a log that compresses its batches gains nothing.
VALUES_MAX, VALUES_BYTES_MAX = 1024, 32 << 20
LAG_PERIOD_S = 0.002

Call = Callable[[bytes], Awaitable[object]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """What a client process is told to do."""

    in_flight: int
    value_bytes: int = 64
    seconds: float = 3.0
    warm_up_s: float = 0.5
    what: str = "propose"


async def put_under(load: Load, calls: Sequence[Call]) -> dict[str, float]:
    """Call for so long, clients spread over `calls`. What ends behind the warm-up is measured; "calls" counts all."""
    different = min(VALUES_MAX, VALUES_BYTES_MAX // load.value_bytes)
    values = itertools.cycle([os.urandom(load.value_bytes) for _ in range(different)])
    latencies_s = array.array("d")
    begin = time.perf_counter() + load.warm_up_s
    end = begin + load.seconds
    done = 0

    async def client(call: Call) -> None:
        nonlocal done
        while (start := time.perf_counter()) < end:
            await call(next(values))
            now = time.perf_counter()
            done += 1
            if begin <= now < end:
                latencies_s.append(now - start)

    lag = asyncio.create_task(loop_lag(begin, end))
    async with asyncio.TaskGroup() as clients:
        for _, call in zip(range(load.in_flight), itertools.cycle(calls), strict=False):
            clients.create_task(client(call))
    return found(latencies_s, load.seconds) | {"calls": done, "lag_p99_ms": percentile_ms(await lag, 0.99)}


async def loop_lag(begin: float, end: float) -> list[float]:
    """How long the loop takes for a turn, which is how late it can be for anything else; looked at now and then."""
    turns_s = []
    await asyncio.sleep(begin - time.perf_counter())
    while (start := time.perf_counter()) < end:
        await asyncio.sleep(0)
        turns_s.append(time.perf_counter() - start)
        await asyncio.sleep(LAG_PERIOD_S)
    return turns_s


def found(latencies_s: Iterable[float], seconds: float) -> dict[str, float]:
    """The figures of a measurement."""
    ordered = sorted(latencies_s)
    if not ordered:
        raise RuntimeError(f"no call ended within {seconds:g} s")
    p50, p99 = percentile_ms(ordered, 0.5), percentile_ms(ordered, 0.99)
    return {"rate": len(ordered) / seconds, "p50_ms": p50, "p99_ms": p99, "calls": len(ordered)}


def percentile_ms(seconds: Iterable[float], part: float) -> float:
    """What so large a part did not exceed, in milliseconds; 0 of none."""
    ordered = sorted(seconds)
    return ordered[int(len(ordered) * part)] * 1000 if ordered else 0.0


async def obey(calls: Mapping[str, Sequence[Call]]) -> None:
    """Carry out the loads that standard input orders, until its end."""
    async for order in orders():
        await carry_out(order, calls)


async def carry_out(
    order: dict[str, Any], calls: Mapping[str, Sequence[Call]], more: Callable[[], dict[str, float]] = dict
) -> None:
    """Answer one order: what was found, and `more` of it, or why nothing was."""
    load = Load(**order["load"])
    try:
        say({"found": await put_under(load, calls[load.what]) | more()})
    except (Exception, ExceptionGroup) as error:
        first = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
        say({"found": {"failed": f"{type(first).__name__}: {first}"[:200]}})


async def orders() -> AsyncIterator[dict[str, Any]]:
    """What the parent says, line by line."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async for line in lines:
        yield json.loads(line)


def say(message: dict[str, Any]) -> None:
    """Tell the parent."""
    print(json.dumps(message), flush=True)
