"""What a command is made of."""

from __future__ import annotations

import argparse
import enum
from typing import Protocol

__all__ = ["Command", "CommandError", "Status"]


class Status(enum.IntEnum):
    """How a command ends. Scripts rely on these: a number never gets another meaning."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> Status:
        """Give each number what it means, for `--help`."""
        status = int.__new__(cls, value)
        status._value_ = value
        status.meaning = meaning
        return status

    OK = 0, "all is well"
    UNWELL = 1, "what was looked at is damaged: a node would not go on from it"
    USAGE = 2, "the arguments are wrong"
    UNREADABLE = 3, "it cannot be looked at: no data directory, no permission, a newer format, or too busy"


class CommandError(Exception):
    """Ends a command: one sentence that says what happened and what to do, and the exit status."""

    def __init__(self, message: str, status: Status) -> None:
        super().__init__(message)
        self.status = status


class Command(Protocol):
    """A module that is a command. Importing it starts nothing, and imports little."""

    NAME: str
    """How it is called."""
    SUMMARY: str
    """A line for the list of commands."""
    DESCRIPTION: str
    """What it does, for its `--help`."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Say what it takes."""
        ...

    def run(self, arguments: argparse.Namespace) -> Status:
        """Do it. Raises CommandError."""
        ...
