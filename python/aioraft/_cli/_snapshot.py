"""`aioraft snapshot`: has a node take a snapshot."""

from __future__ import annotations

import argparse
import json
import sys

from ._command import Command, Status
from ._nodes import add_node_arguments, ask

__all__ = ["COMMAND"]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_node_arguments(parser, timeout=60)


def _run(arguments: argparse.Namespace) -> Status:
    index = ask(arguments, lambda client, timeout: client.snapshot(timeout), changes=True)
    text = json.dumps({"index": index}) if arguments.json else f"a snapshot of entry {index} is on the node's disk"
    sys.stdout.write(f"{text}\n")
    return Status.OK


COMMAND = Command(
    name="snapshot",
    summary="have a node take a snapshot",
    description="""\
Has a node take a snapshot of its state machine, and waits until it is on that node's disk; the log is compacted behind
it. Every node takes its own: of several nodes, the first that can be asked does.
""",
    add_arguments=_add_arguments,
    run=_run,
)
