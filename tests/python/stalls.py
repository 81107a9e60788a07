"""How long an event loop is held up, and how much memory a process takes."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import pathlib
import re
import threading
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
    """How long other tasks had to wait for their turn until `done`, beside threads that want the GIL.

    It gives the GIL away only where the loop does. What the machine's other processes cost is no wait.
    """
    queues = _Queues()
    longest_s, last, queued_s = 0.0, time.perf_counter(), queues.read_s()
    while not done.done():
        await asyncio.sleep(0)
        waited_s, before_s, queued_s = time.perf_counter() - last, queued_s, queues.read_s()
        longest_s = max(longest_s, waited_s - (queued_s - before_s))
        last = time.perf_counter()
    queues.close()
    return longest_s


class _Queues:
    """How long Python's threads have waited for a processor. Unlike Python's own functions it reads with the GIL held."""

    _libc = ctypes.PyDLL(None)

    def __init__(self) -> None:
        self._files: dict[int, int] = {}
        self._queued_ns: dict[int, int] = {}
        self._earlier_ns = 0
        self._text = ctypes.create_string_buffer(64)

    def read_s(self) -> float:
        """What has come up since each thread was seen first."""
        for thread in threading.enumerate():
            if (number := thread.native_id) is not None and number not in self._files:
                self._files[number] = self._libc.open(b"/proc/self/task/%d/schedstat" % number, os.O_RDONLY)
                self._earlier_ns += self._look_ns(number)
        return (sum(map(self._look_ns, self._files)) - self._earlier_ns) / 1e9

    def _look_ns(self, thread: int) -> int:
        """Of a thread that has ended, what it came to."""
        length = self._libc.pread(self._files[thread], self._text, len(self._text) - 1, ctypes.c_long(0))
        if length > 0:
            self._queued_ns[thread] = int(self._text.raw[:length].split()[1])
        return self._queued_ns.get(thread, 0)

    def close(self) -> None:
        for file in self._files.values():
            self._libc.close(file)
