"""`aioraft transfer`: has another node lead."""

from __future__ import annotations

import argparse
import json
import sys

from ._command import Command, CommandError, Status
from ._nodes import add_node_arguments, ask, node_id

__all__ = ["COMMAND"]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("to", metavar="ID", nargs="?", type=node_id, help="who is to lead")
    add_node_arguments(parser, timeout=10)


def _run(arguments: argparse.Namespace) -> Status:
    to: int | None = arguments.to
    leader = ask(arguments, lambda client, timeout: client.transfer_leader(to, timeout), changes=True)
    if to is not None and leader != to:
        raise CommandError(f"node {leader} leads, not node {to}: another hand-over came first", Status.REFUSED)
    sys.stdout.write(json.dumps({"leader": leader}) + "\n" if arguments.json else f"node {leader} leads\n")
    return Status.OK


COMMAND = Command(
    name="transfer",
    summary="have another node lead",
    description="""\
Has another node lead: the one that is named, or whichever is furthest. Any node may be asked: if it does not lead, it
names the leader, which is asked then. Proposals go on meanwhile.
""",
    add_arguments=_add_arguments,
    run=_run,
)
