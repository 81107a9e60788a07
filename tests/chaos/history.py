"""What clients asked for and what they were told, line by line; the format is documented in `src/sim/history.rs`."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from typing import Any, Literal

from objects import NOTHING

End = Literal["ok", "applied", "refused", "unknown"]


class Recorder:
    """Writes the history of one process. Each line is in the kernel's hands, safe from SIGKILL, before the call goes on."""

    def __init__(self, path: pathlib.Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self.calls = 0

    def begin(self, key: int, action: list[Any]) -> int:
        """A client is about to call; returns the call's number."""
        call = self.calls
        self.calls += 1
        # CLOCK_MONOTONIC is one for all processes of a machine. It is read before the call and behind its end.
        self._write(call, "call", key, *action)
        return call

    def answer(self, call: int, answer: int) -> None:
        """It was answered."""
        self._write(call, "ok", answer)

    def end(self, call: int, how: Literal["applied", "refused", "unknown"]) -> None:
        """It ended without an answer."""
        self._write(call, how)

    def _write(self, call: int, what: str, *rest: Any) -> None:
        words = [call, what, time.monotonic_ns(), *("-" if word == NOTHING else word for word in rest)]
        line = " ".join(map(str, words)).encode() + b"\n"
        assert os.write(self._file, line) == len(line)


@dataclasses.dataclass(slots=True)
class Call:
    """What became of one call."""

    is_read: bool
    end: End | None = None


def read(path: pathlib.Path) -> dict[int, Call]:
    """Read back what a `Recorder` wrote."""
    calls: dict[int, Call] = {}
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            break  # its process was killed while it wrote
        match line.split():
            case [number, "call", _, _, action, *_]:
                calls[int(number)] = Call(action == "read")
            case [number, ("ok" | "applied" | "refused" | "unknown") as end, *_]:
                calls[int(number)].end = end
            case _:
                raise ValueError(f"{path}: {line!r} is no event of a history")
    return calls
