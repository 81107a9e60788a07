"""A replica that proposes 64 bytes at a time and knows how long it waited for an answer at most, and what its machine did then."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from counting_node import Counts, Replica, run

# How often it looks whether the machine lets it run.
LOOK_S = 0.01


class Steady(Replica):
    """Watches the pauses between the answers to its proposals, and the stalls of its machine."""

    padding_bytes = (24,)  # with the rest of a command about 64

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._answered_at: float | None = None
        self._longest_pause = 0.0
        self._longest_stall = 0.0
        self._answers = 0
        self._skills |= {"pauses": self._pauses}

    async def serve(self, questions: asyncio.StreamReader) -> None:
        self._spawn(self._watch_stalls())
        await super().serve(questions)

    async def _propose(self) -> bool:
        goes_on = await super()._propose()
        now = time.monotonic()
        if self._answered_at is not None:
            self._longest_pause = max(self._longest_pause, now - self._answered_at)
        self._answered_at = now
        self._answers += 1
        return goes_on

    async def _pauses(self) -> dict[str, float]:
        """Since it was last asked: how many answers came, the longest pause between two of them, and the longest time for
        which the machine kept this process, or its disk, from going on."""
        if self._answered_at is not None:
            self._longest_pause = max(self._longest_pause, time.monotonic() - self._answered_at)
        stall = max(self._longest_stall, self._node.status().fsync_max_ns / 1e9)
        seen = {"answers": self._answers, "pause_s": self._longest_pause, "stall_s": stall}
        self._answers, self._longest_pause, self._longest_stall = 0, 0.0, 0.0
        return seen

    async def _watch_stalls(self) -> None:
        while True:
            slept_at = time.monotonic()
            await asyncio.sleep(LOOK_S)
            self._longest_stall = max(self._longest_stall, time.monotonic() - slept_at - LOOK_S)


if __name__ == "__main__":
    run(Steady, Counts())
