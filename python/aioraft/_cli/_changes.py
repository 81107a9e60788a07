"""`aioraft add`, `promote`, `demote` and `remove`: change who belongs to a running cluster."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TypeAlias

from ._command import Command, Status
from ._nodes import add_node_arguments, ask, node_address, node_id

__all__ = ["COMMANDS"]

_Change: TypeAlias = tuple[str, int, str, dict[str, str] | None]
"""As `AdminClient.change` takes it: what is done, to whom (0: the cluster chooses an id), its address, its metadata."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="HOST:PORT", type=node_address, help="where the other nodes will reach it")
    parser.add_argument("--id", metavar="ID", type=node_id, default=0, help="its id; the cluster chooses one otherwise")
    parser.add_argument(
        "--metadata",
        metavar="KEY=VALUE",
        type=_pair,
        action="append",
        default=[],
        help="something that all nodes know of it; several, each behind a --metadata",
    )
    add_node_arguments(parser, timeout=30)


def _add(arguments: argparse.Namespace) -> Status:
    (added,) = _change(arguments, [("add", arguments.id, arguments.address, dict(arguments.metadata))])
    if not arguments.json:
        sys.stdout.write(
            f"node {added} may join, without a vote: start it at {arguments.address} with id={added}, "
            f"and give it a vote with `aioraft promote {added}`\n"
        )
    return Status.OK


def _ids_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", metavar="ID", nargs="+", type=node_id, help="of which nodes; several are done at once")
    add_node_arguments(parser, timeout=30)


def _promote(arguments: argparse.Namespace) -> Status:
    return _each(arguments, "promote", "votes now")


def _demote(arguments: argparse.Namespace) -> Status:
    return _each(arguments, "demote", "is a learner now, and does not vote")


def _remove(arguments: argparse.Namespace) -> Status:
    return _each(arguments, "remove", "is no member any more, and its id is never used again")


def _each(arguments: argparse.Namespace, action: str, done: str) -> Status:
    ids = _change(arguments, [(action, number, "", {}) for number in dict.fromkeys(arguments.ids)])
    if not arguments.json:
        sys.stdout.write("".join(f"node {number} {done}\n" for number in ids))
    return Status.OK


def _change(arguments: argparse.Namespace, changes: list[_Change]) -> list[int]:
    """Have them made together, and return whom they concern."""
    index, ids = ask(arguments, lambda client, timeout: client.change(changes, timeout), changes=True)
    if arguments.json:
        sys.stdout.write(json.dumps({"ids": ids, "index": index}) + "\n")
    return ids


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE")
    return key, value


COMMANDS = (
    Command(
        name="add",
        summary="let a new node join a running cluster",
        description="""\
Lets a new node join a running cluster, without a vote: it is sent the log and follows it. It is started then, with its
id, its address, and the members that are there already. Ids of removed nodes are never used again.
""",
        add_arguments=_add_arguments,
        run=_add,
    ),
    Command(
        name="promote",
        summary="give learners a vote",
        description="""\
Gives learners a vote. It is waited for until they have caught up; one that does not in time stays what it is.
""",
        add_arguments=_ids_arguments,
        run=_promote,
    ),
    Command(
        name="demote",
        summary="take the vote of members",
        description="""\
Makes voters learners: they follow the log and do not vote. A leader hands over first.
""",
        add_arguments=_ids_arguments,
        run=_demote,
    ),
    Command(
        name="remove",
        summary="remove members from a running cluster for good",
        description="""\
Removes members from a running cluster for good, whether they run or not: their ids are never used again, and a node
that was removed stops. A leader hands over first.
""",
        add_arguments=_ids_arguments,
        run=_remove,
    ),
)
