"""The command `aioraft`: looks after data directories and clusters.

A command is the `COMMAND` of a module, or one of several that are alike, and has its place in `_COMMANDS` here.
What it finds is written to standard output, as a table for people or with `--json` for scripts; what went wrong is one
sentence on standard error, raised as a `CommandError` with the exit status that says which kind it is.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import aioraft

from . import _bench, _changes, _inspect, _members, _recover, _snapshot, _status, _transfer
from ._command import Command, CommandError, Status

__all__ = ["main", "run"]

_COMMANDS = (
    _inspect.COMMAND,
    _recover.COMMAND,
    _status.COMMAND,
    _members.COMMAND,
    *_changes.COMMANDS,
    _transfer.COMMAND,
    _snapshot.COMMAND,
    _bench.COMMAND,
)


def run() -> NoReturn:
    """Be the process's command: ends it."""
    # Ctrl-C, and a reader that has seen enough, end it without a traceback, as they end any command.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever the terminal can show, a path never fails
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main()
        sys.stdout.flush()
    except OSError as error:  # a full disk, say
        sys.stderr.write(f"aioraft: the answer cannot be written: {error}; give standard output another place\n")
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or the interpreter tries once more, and complains
        status = Status.UNREADABLE
    sys.exit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` name, those of the process by default, and return its exit status.

    Raises SystemExit for `--help`, `--version` and arguments that are wrong.
    """
    parsed = _parser().parse_args(arguments)
    command: Command = parsed.command
    try:
        return command.run(parsed)
    except CommandError as error:
        sys.stderr.write(f"aioraft {command.name}: {error}\n")
        return error.status


def _parser() -> argparse.ArgumentParser:
    statuses = "\n".join(f"  {status.value}  {status.meaning}" for status in Status)
    parser = argparse.ArgumentParser(
        prog="aioraft",
        description="Looks after the nodes of an aioraft cluster, and what they keep on disk.",
        epilog=f"exit status:\n{statuses}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"aioraft {aioraft.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        own = commands.add_parser(
            command.name,
            help=command.summary,
            description=command.description,
            epilog=parser.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(own)
        own.set_defaults(command=command)
    return parser
