"""A large state in chunks: the loop goes on, memory does not grow. `make test-large` takes 1 GiB, `make test` an eighth."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

import aioraft
from aioraft._core import Core
from core_help import DEADLINE, Scripted, started, wait_without_threads

MIB = 1 << 20
STATE_BYTES = int(os.environ.get("AIORAFT_STATE_MIB", "128")) * MIB
CHUNK_BYTES = 256 * 1024
STALL_MAX_S = 0.010
GROWTH_MAX_BYTES = 64 * MIB
ATTEMPTS = 5
"""How long a busy machine keeps a thread is known only roughly; a stall that is aioraft's own comes each time."""


class Now(NamedTuple):
    """A moment of this thread."""

    wall_s: float
    processor_s: float
    queued_ns: dict[str, int]
    """How long each thread of this process has waited for a processor that other processes had."""

    @classmethod
    def read(cls) -> Now:
        queued_ns: dict[str, int] = {}
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError):  # it has just ended
                queued_ns[thread] = int(pathlib.Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[1])
        return cls(time.perf_counter(), time.thread_time(), queued_ns)

    def queued_s(self, since: Now) -> float:
        return sum(now - since.queued_ns.get(thread, 0) for thread, now in self.queued_ns.items()) / 1e9


class Large(Scripted):
    """Chunks that can be told apart, and the time that making them takes."""

    def __init__(self, *, in_thread: bool) -> None:
        super().__init__()
        self.in_thread = in_thread
        self.wall_s = self.processor_s = 0.0
        self.next = 0

    def snapshot(self) -> Iterator[bytes] | Callable[[], Iterator[bytes]]:
        return self.chunks if self.in_thread else self.chunks()

    def chunks(self) -> Iterator[bytes]:
        rest = b"x" * (CHUNK_BYTES - 8)
        for number in range(STATE_BYTES // CHUNK_BYTES):
            wall_s, processor_s = time.perf_counter(), time.thread_time()
            chunk = number.to_bytes(8) + rest
            if not self.in_thread:
                self.wall_s += time.perf_counter() - wall_s
                self.processor_s += time.thread_time() - processor_s
            yield chunk

    def restore(self, data: Iterator[bytes]) -> None:
        for chunk in data:
            assert (int.from_bytes(chunk[:8]), len(chunk)) == (self.next, CHUNK_BYTES)
            self.next += 1


def resident_bytes(which: str) -> int:
    """VmRSS, or its peak VmHWM since the last `forget_peak`."""
    found = re.search(rf"{which}:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def forget_peak() -> int:
    """Begin a new peak; return what is resident now."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes("VmRSS")


async def longest_stall_s(machine: Large, done: asyncio.Future[Any]) -> float:
    """How long other tasks had to wait for their turn until `done`, beyond the state machine's own time.

    What the machine's other processes cost is no stall: a wait counts if this thread was at work, or if no thread of
    this process was kept from its work meanwhile.
    """
    longest_s = 0.0
    last, wall_s, processor_s = Now.read(), machine.wall_s, machine.processor_s
    while not done.done():
        await asyncio.sleep(0)
        now = Now.read()
        waited_s = now.wall_s - last.wall_s - (machine.wall_s - wall_s) - now.queued_s(last)
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


async def wait_for_a_thread_alone_s(file: pathlib.Path) -> float:
    """The same beside a thread that writes the same chunks, without a node: what sharing the GIL costs by itself."""

    def write() -> None:
        with file.open("wb") as out:
            out.writelines(Large(in_thread=True).chunks())

    return await longest_wait_s(asyncio.get_running_loop().run_in_executor(None, write))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("in_thread", [False, True], ids=["on the loop", "in a thread"])
def test_a_large_state_stalls_nothing_and_takes_little_memory(in_thread: bool, tmp_path: pathlib.Path) -> None:
    figures: list[str] = []

    async def take() -> tuple[float, int]:
        machine = Large(in_thread=in_thread)
        core = await started(machine, data_dir=tmp_path / str(len(figures)))
        await core.propose(b"x", DEADLINE)
        before = forget_peak()
        begun = time.perf_counter()
        snapshot = core.snapshot(None)
        stall_s = await (longest_wait_s(snapshot) if in_thread else longest_stall_s(machine, snapshot))
        growth = resident_bytes("VmHWM") - before
        took_s = time.perf_counter() - begun
        await core.close(0)
        figures.append(f"stall {stall_s * 1000:.1f} ms, memory {growth / MIB:.1f} MiB, {took_s:.1f} s")
        return stall_s, growth

    async def restore() -> int:
        machine = Large(in_thread=in_thread)
        before = forget_peak()
        core: Core = await started(machine, data_dir=tmp_path / str(len(figures) - 1))
        growth = resident_bytes("VmHWM") - before
        assert (machine.next, core.applied) == (STATE_BYTES // CHUNK_BYTES, 1)
        await core.close(0)
        figures.append(f"restored with {growth / MIB:.1f} MiB")
        return growth

    for _ in range(ATTEMPTS):
        alone_s = asyncio.run(wait_for_a_thread_alone_s(tmp_path / "alone")) if in_thread else 0.0
        stall_s, growth = asyncio.run(take())
        figures[-1] += f" (without a node: {alone_s * 1000:.1f} ms)" if in_thread else ""
        if stall_s <= STALL_MAX_S + alone_s:
            break
    restored_growth = asyncio.run(restore())
    wait_without_threads()
    print(f"{STATE_BYTES // MIB} MiB {'in a thread' if in_thread else 'on the loop'}: {'; '.join(figures)}")  # noqa: T201
    assert stall_s <= STALL_MAX_S + alone_s, figures
    assert growth <= GROWTH_MAX_BYTES, figures
    assert restored_growth <= GROWTH_MAX_BYTES, figures


def test_a_large_value_is_not_copied(tmp_path: pathlib.Path) -> None:
    class Value(aioraft.StateMachine[None]):
        def __init__(self, value: bytes) -> None:
            self.value = value

        def apply(self, entry: aioraft.Entry) -> None: ...

        def snapshot(self) -> bytes:
            return self.value

        def restore(self, data: bytes) -> None:
            self.value = data

    async def take() -> int:
        core = await started(Value(b"x" * STATE_BYTES), data_dir=tmp_path)
        before = forget_peak()
        await core.snapshot(None)
        growth = resident_bytes("VmHWM") - before
        await core.close(0)
        return growth

    assert asyncio.run(take()) <= GROWTH_MAX_BYTES
