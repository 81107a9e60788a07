"""State machines that tests share."""

from __future__ import annotations

from collections.abc import Sequence

import aioraft


class Adder(aioraft.StateMachine[int]):
    """Adds up numbers; `b"fail"` raises."""

    def __init__(self) -> None:
        self.total = 0

    def apply(self, entry: aioraft.Entry) -> int:
        if entry.data == b"fail":
            raise ValueError("told to fail")
        self.total += int(entry.data)
        return self.total


class BatchAdder(Adder):
    """The same, many entries a call."""

    def apply_batch(self, entries: Sequence[aioraft.Entry]) -> list[int | Exception]:
        results: list[int | Exception] = []
        for entry in entries:
            try:
                results.append(self.apply(entry))
            except ValueError as error:
                results.append(error)
        return results
