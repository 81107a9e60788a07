"""A replica that proposes 64 bytes at a time and knows how long it waited for an answer at most."""

from __future__ import annotations

import time
from typing import Any

from counting_node import Counts, Replica, run


class Steady(Replica):
    """Watches the pauses between the answers to its proposals."""

    padding_bytes = (24,)  # with the rest of a command about 64

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._answered_at: float | None = None
        self._longest_pause = 0.0
        self._answers = 0
        self._skills |= {"pauses": self._pauses, "transfer": self._transfer}

    async def _propose(self) -> bool:
        goes_on = await super()._propose()
        now = time.monotonic()
        if self._answered_at is not None:
            self._longest_pause = max(self._longest_pause, now - self._answered_at)
        self._answered_at = now
        self._answers += 1
        return goes_on

    async def _pauses(self) -> tuple[int, float]:
        """Return how many answers came since it was last asked, and the longest pause between two of them in seconds."""
        if self._answered_at is not None:
            self._longest_pause = max(self._longest_pause, time.monotonic() - self._answered_at)
        seen = (self._answers, self._longest_pause)
        self._answers, self._longest_pause = 0, 0.0
        return seen

    async def _transfer(self, to: int | None = None, timeout: float = 10.0) -> int:
        return await self._node.transfer_leader(to, timeout=timeout)


if __name__ == "__main__":
    run(Steady, Counts())
