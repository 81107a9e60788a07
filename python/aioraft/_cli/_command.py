"""What a command is made of."""

from __future__ import annotations

import argparse
import dataclasses
import enum
from collections.abc import Callable

__all__ = ["Command", "CommandError", "Status"]


class Status(enum.IntEnum):
    """How a command ends. Scripts rely on these: a number never gets another meaning."""

    OK = 0
    UNWELL = 1
    USAGE = 2
    UNREADABLE = 3
    UNREACHABLE = 4
    REFUSED = 5
    LATE = 6
    UNKNOWN = 7

    @property
    def meaning(self) -> str:
        """What it means, for `--help`."""
        return _MEANINGS[self]


_MEANINGS = {
    Status.OK: "all is well",
    Status.UNWELL: "what was looked at is unwell: a directory that no node would go on from, or no leader",
    Status.USAGE: "the arguments are wrong",
    Status.UNREADABLE: "it cannot be looked at: no data directory, no permission, a newer format, or too busy",
    Status.UNREACHABLE: "no node could be asked: out of reach, of another cluster, or it takes no commands from here",
    Status.REFUSED: "it was not done, and the node says why",
    Status.LATE: "it was not done in time",
    Status.UNKNOWN: "it may have been done, or may be yet: look before you try again",
}


class CommandError(Exception):
    """Ends a command: one sentence that says what happened and what to do, and the exit status."""

    def __init__(self, message: str, status: Status) -> None:
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command. Each is the `COMMAND` of a module of its own; importing that starts nothing, and imports little."""

    name: str
    """How it is called."""
    summary: str
    """A line for the list of commands."""
    description: str
    """What it does, for its `--help`."""
    add_arguments: Callable[[argparse.ArgumentParser], None]
    """Says what it takes."""
    run: Callable[[argparse.Namespace], Status]
    """Does it. Raises CommandError."""
