"""One replica whose state machine has snapshots: it says how far it is with them, and stops there when it is told to.

It speaks the language of `counting_node.py`. Its events are `{"event": "stage", "stage": ...}`, one of `STAGES`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import aioraft
from counting_node import Counts, Replica, Sequence, run, say

CAPTURING, WRITING, RESTORING, RESTORED = STAGES = ("capturing", "writing", "restoring", "restored")
HOLD_S = 120.0
"""Longer than any test: whoever is told to stop somewhere is killed there, or told to go on."""
CHUNK_BYTES = 64 * 1024


class Snapshots(Counts):
    """Counts, with as many bytes beside them as it is told, so that a snapshot takes as long as a test needs."""

    def __init__(self) -> None:
        super().__init__()
        self.ballast_bytes = 0
        self.applied_here = 0
        self.restored_index = 0
        self.hold_at: str | None = None
        self.released = threading.Event()

    def apply(self, entry: aioraft.Entry) -> int:
        self.applied_here += 1
        return super().apply(entry)

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        self._reach(CAPTURING)
        sequence = [self._sequence.length, self._sequence.chain.hex()]
        state = [self.last_index, self.ballast_bytes, sequence, self.counts.copy()]
        return lambda: self._chunks(state)

    def _chunks(self, state: list[Any]) -> Iterator[bytes]:
        yield json.dumps(state).encode()
        chunks = state[1] // CHUNK_BYTES
        for number in range(chunks):
            if number == chunks // 2:
                self._reach(WRITING)
            yield number.to_bytes(8) * (CHUNK_BYTES // 8)

    def restore(self, data: Iterator[bytes]) -> None:
        self._reach(RESTORING)
        self.last_index, self.ballast_bytes, (length, chain), counts = json.loads(next(data))
        self.counts.clear()
        self.counts.update(counts)
        self._sequence = Sequence(length, bytes.fromhex(chain))
        chunks = 0
        for number, chunk in enumerate(data):
            assert chunk == number.to_bytes(8) * (CHUNK_BYTES // 8)
            chunks += 1
        assert chunks == self.ballast_bytes // CHUNK_BYTES
        self.restored_index = self.last_index
        self.applied_here = 0
        say({"event": "stage", "stage": RESTORED})

    def _reach(self, stage: str) -> None:
        if self.hold_at == stage:
            say({"event": "stage", "stage": stage})
            self.released.wait(HOLD_S)


class SnapshotReplica(Replica):
    """Does what is asked about snapshots, too."""

    def __init__(self, node: aioraft.Node[int], machine: Snapshots, incarnation: str, seed: str) -> None:
        super().__init__(node, machine, incarnation, seed)
        self._snapshots = machine
        self._skills |= {
            "load ballast": self._load_ballast,
            "hold": self._hold,
            "snapshot": self._snapshot,
            "read": self._read,
        }

    async def _load_ballast(self, bytes_each: int) -> None:
        """Have so many bytes in the next snapshots."""
        self._snapshots.ballast_bytes = bytes_each

    async def _hold(self, stage: str) -> None:
        """Stop at `stage` from now on."""
        self._snapshots.hold_at = stage

    async def _snapshot(self) -> int:
        return await self._node.snapshot()

    async def _read(self, after: int, through: int) -> dict[str, Any]:
        """Read `commits(after)`; what is compacted is passed over, as the error says."""
        restarts: list[int] = []
        while True:
            sequence = Sequence()
            try:
                async for entry in self._node.commits(after):
                    sequence.add(entry)
                    if entry.index >= through:
                        return {"restarts": restarts, "sequence": sequence.digest()}
            except aioraft.Compacted as error:
                assert error.restart > after
                after = error.restart
                restarts.append(after)

    async def _report(self) -> dict[str, Any]:
        report = await super()._report()
        machine = self._snapshots
        return report | {"applied_here": machine.applied_here, "restored_index": machine.restored_index}


if __name__ == "__main__":
    run(SnapshotReplica, Snapshots())
