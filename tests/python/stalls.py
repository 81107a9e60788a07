"""How long an event loop is held up, and how much memory a process takes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import re
import time
from typing import Any, NamedTuple, Protocol


class Now(NamedTuple):
    """A moment of this thread. Looking takes a while itself, in which the thread may lose its processor."""

    begun_s: float
    ended_s: float
    processor_s: float
    queued_ns: dict[str, int]
    """How long each thread of this process has waited for a processor that other processes had."""

    @classmethod
    def read(cls) -> Now:
        begun_s, processor_s = time.perf_counter(), time.thread_time()
        queued_ns: dict[str, int] = {}
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError):  # it has just ended
                queued_ns[thread] = int(pathlib.Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[1])
        return cls(begun_s, time.perf_counter(), processor_s, queued_ns)

    def queued_s(self, since: Now) -> float:
        return sum(now - since.queued_ns.get(thread, 0) for thread, now in self.queued_ns.items()) / 1e9


class Busy(Protocol):
    """A state machine that says how long it has worked on the loop."""

    wall_s: float
    processor_s: float


def resident_bytes(which: str) -> int:
    """VmRSS, or its peak VmHWM since the last `forget_peak`."""
    found = re.search(rf"{which}:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def forget_peak() -> int:
    """Begin a new peak; return what is resident now."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes("VmRSS")


async def longest_stall_s(machine: Busy, done: asyncio.Future[Any]) -> float:
    """How long other tasks had to wait for their turn until `done`, beyond the state machine's own time.

    What the machine's other processes cost is no stall: a wait counts if this thread was at work, or if no thread of
    this process was kept from its work meanwhile.
    """
    longest_s = 0.0
    last, wall_s, processor_s = Now.read(), machine.wall_s, machine.processor_s
    while not done.done():
        await asyncio.sleep(0)
        now = Now.read()
        waited_s = now.begun_s - last.ended_s - (machine.wall_s - wall_s) - now.queued_s(last)
        worked_s = now.processor_s - last.processor_s - (machine.processor_s - processor_s)
        longest_s = max(longest_s, waited_s, worked_s)
        last, wall_s, processor_s = now, machine.wall_s, machine.processor_s
    return longest_s


async def longest_wait_s(done: asyncio.Future[Any]) -> float:
    """How long other tasks had to wait for their turn until `done`. Gives the GIL away only where the loop does."""
    longest_s, last = 0.0, time.perf_counter()
    while not done.done():
        await asyncio.sleep(0)
        now = time.perf_counter()
        longest_s, last = max(longest_s, now - last), now
    return longest_s
