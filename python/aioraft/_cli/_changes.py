"""`aioraft add`, `promote`, `demote` and `remove`: change who belongs to a running cluster."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, TypeAlias, cast

from ._command import Command, CommandError, Status
from ._nodes import add_node_arguments, ask, node_address, node_id

if TYPE_CHECKING:
    from ._answers import Member, Members

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
    earlier = _earlier(arguments)
    number = arguments.id if earlier is None else earlier["id"]
    (added,) = _change(arguments, [("add", number, arguments.address, dict(arguments.metadata))])
    if not arguments.json:
        sys.stdout.write(f"node {added} {_state(arguments.address, added, earlier)}\n")
    return Status.OK


def _state(address: str, number: int, earlier: Member | None) -> str:
    if earlier and earlier["votes"]:
        return "is a member already, and votes"
    vote = f"give it a vote with `aioraft promote {number}`"
    if earlier and earlier["identity"]:
        return f"is a member already: {vote}"
    return f"may join, without a vote: start it at {address} with id={number}, and {vote}"


def _earlier(arguments: argparse.Namespace) -> Member | None:
    """Return the member that is to be added, if it was before. Raises CommandError if it would be one of two."""
    found = cast("Members", ask(arguments, lambda client, timeout: client.members(timeout), changes=False))
    for it in found["members"]:
        if it["id"] == arguments.id:
            if it["address"] == arguments.address:
                return it
            raise CommandError(
                f"node {it['id']} is a member already, reached at {it['address']}: leave out --id to have the cluster "
                "choose another one",
                Status.REFUSED,
            )
    for it in found["members"]:
        if it["address"] == arguments.address:
            # Of a node that was to be added before, and whose answer was lost.
            if arguments.id == 0 and not it["votes"]:
                return it
            # One that is gone may well be followed by another one at its address.
            if it["connected"]:
                raise CommandError(
                    f"node {it['id']} runs at {it['address']}: give the new one an address of its own", Status.REFUSED
                )
    return None


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
