"""One replica with a large state, which is made when it is shown and checked when it is restored, and never held.

It speaks the language of `counting_node.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import aioraft
from counting_node import Counts, Replica, Sequence, run
from stalls import forget_peak, longest_stall_s, resident_bytes

STATE_VARIABLE = "AIORAFT_STATE_MIB"
STATE_BYTES = int(os.environ.get(STATE_VARIABLE, "96")) << 20
CHUNK_BYTES = 256 * 1024
REST = b"x" * (CHUNK_BYTES - 8)
PAUSE_S = 0.005


class Large(Counts):
    """Counts, and chunks that can be told apart; knows how long it has worked on the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.wall_s = self.processor_s = 0.0
        self.restored_chunks = 0

    def snapshot(self) -> Iterator[bytes]:
        yield json.dumps(
            [self.last_index, self._sequence.length, self._sequence.chain.hex(), list(self.counts)]
        ).encode()
        for number in range(STATE_BYTES // CHUNK_BYTES):
            wall_s, processor_s = time.perf_counter(), time.thread_time()
            chunk = number.to_bytes(8) + REST
            self.wall_s += time.perf_counter() - wall_s
            self.processor_s += time.thread_time() - processor_s
            yield chunk

    def restore(self, data: Iterator[bytes]) -> None:
        self.last_index, length, chain, names = json.loads(next(data))
        self._sequence = Sequence(length, bytes.fromhex(chain))
        self.counts.update(names)
        for chunk in data:
            assert (int.from_bytes(chunk[:8]), len(chunk)) == (self.restored_chunks, CHUNK_BYTES)
            self.restored_chunks += 1


class LargeReplica(Replica):
    """Proposes at a steady pace, and measures itself."""

    padding_bytes = (100,)

    def __init__(self, node: aioraft.Node[int], machine: Large, incarnation: str, seed: str) -> None:
        super().__init__(node, machine, incarnation, seed)
        self._large = machine
        self._resident = forget_peak()
        self._latencies_s: list[float] = []
        self._skills |= {
            "take": self._take,
            "grown": self._grown,
            "measure memory": self._measure_memory,
            "latencies": self._latencies,
            "restored": self._restored,
        }

    async def _propose(self) -> bool:
        # The pace of the load, whatever an answer takes.
        await asyncio.sleep(PAUSE_S)
        begun = time.perf_counter()
        goes_on = await super()._propose()
        self._latencies_s.append(time.perf_counter() - begun)
        return goes_on

    async def _latencies(self) -> list[float]:
        """Return how long proposals have taken since the last time, in seconds."""
        latencies_s, self._latencies_s = self._latencies_s, []
        return latencies_s

    async def _take(self, watch: bool) -> dict[str, Any]:
        """Take a snapshot; return how long the loop was held up beyond the state machine's own work, if it is watched."""
        begun = time.perf_counter()
        snapshot = asyncio.ensure_future(self._node.snapshot())
        stall_s = await longest_stall_s(self._large, snapshot) if watch else 0.0
        return {"index": await snapshot, "stall_s": stall_s, "took_s": time.perf_counter() - begun}

    async def _measure_memory(self) -> None:
        """Begin anew."""
        self._resident = forget_peak()

    async def _grown(self) -> int:
        """Return the bytes by which memory has grown at most."""
        return resident_bytes("VmHWM") - self._resident

    async def _restored(self) -> int:
        return self._large.restored_chunks


if __name__ == "__main__":
    run(LargeReplica, Large())
