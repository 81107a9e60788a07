"""A large state in chunks: the loop goes on, memory does not grow. `make test-large` takes 1 GiB, `make test` an eighth."""

from __future__ import annotations

import asyncio
import os
import pathlib
import time
from collections.abc import Callable, Iterator

import pytest

import aioraft
from aioraft._core import Core
from core_help import DEADLINE, Scripted, started, wait_without_threads
from stalls import forget_peak, longest_stall_s, longest_wait_s, resident_bytes

MIB = 1 << 20
STATE_BYTES = int(os.environ.get("AIORAFT_STATE_MIB", "128")) * MIB
CHUNK_BYTES = 256 * 1024
STALL_MAX_S = 0.010
GROWTH_MAX_BYTES = 64 * MIB
ATTEMPTS = 5
"""How long a busy machine keeps a thread is known only roughly; a stall that is aioraft's own comes each time."""


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
        stall_s, growth = asyncio.run(take())
        if stall_s <= STALL_MAX_S:
            break
    restored_growth = asyncio.run(restore())
    wait_without_threads()
    print(f"{STATE_BYTES // MIB} MiB {'in a thread' if in_thread else 'on the loop'}: {'; '.join(figures)}")  # noqa: T201
    assert stall_s <= STALL_MAX_S, figures
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
