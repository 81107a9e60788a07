"""`aioraft members`: who belongs to a cluster."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from ._command import Command, Status
from ._nodes import add_node_arguments, ask
from ._table import columns

if TYPE_CHECKING:
    from ._answers import Members

__all__ = ["COMMAND"]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_node_arguments(parser, timeout=5)


def _run(arguments: argparse.Namespace) -> Status:
    found = cast("Members", ask(arguments, lambda client, timeout: client.members(timeout), changes=False))
    lines = [json.dumps(found, indent=2)] if arguments.json else columns(_table(found))
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return Status.OK


COMMAND = Command(
    name="members",
    summary="show who belongs to a running cluster",
    description="""\
Shows who belongs to a running cluster, as far as the node that is asked knows: ids, addresses, who votes, who leads. Of
several nodes it asks the first that can be reached.
""",
    add_arguments=_add_arguments,
    run=_run,
)


def _table(found: Members) -> Iterator[tuple[object, ...]]:
    has_metadata = any(it["metadata"] for it in found["members"])
    yield ("node", "address", "role", "connection", "identity", *(("metadata",) if has_metadata else ()))
    for it in found["members"]:
        role = "leader" if it["id"] == found["leader"] else "voter" if it["votes"] else "learner"
        metadata = ", ".join(f"{key}={value}" for key, value in it["metadata"].items())
        identity = it["identity"] or "not met yet"
        connection = "up" if it["connected"] else "down"
        where = it["address"] or "not known"
        yield (it["id"], where, role, connection, identity, *((metadata,) if has_metadata else ()))
