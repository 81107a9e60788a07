"""`aioraft status`: how a running node is."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from ._command import Command, Status
from ._nodes import add_node_arguments, ask
from ._table import columns, of_bytes, sections

if TYPE_CHECKING:
    from ._answers import NodeStatus

__all__ = ["COMMAND"]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_node_arguments(parser, timeout=5)


def _run(arguments: argparse.Namespace) -> Status:
    figures = cast("NodeStatus", ask(arguments, lambda client, timeout: client.status(timeout), changes=False))
    text = json.dumps(figures, indent=2) + "\n" if arguments.json else sections(_parts(figures))
    sys.stdout.write(text)
    return Status.UNWELL if figures["leader"] is None else Status.OK


COMMAND = Command(
    name="status",
    summary="show how a running node is",
    description="""\
Shows how a running node is: who leads, how far its log is committed and applied, its snapshot, its disk, and its
connections to the others. Of several nodes it asks the first that can be reached.

Ends with status 1 if the node knows of no leader.
""",
    add_arguments=_add_arguments,
    run=_run,
)


def _parts(figures: NodeStatus) -> Iterator[tuple[str, list[str]]]:
    starts = f"started {figures['boot']} time{'s' if figures['boot'] != 1 else ''}"
    yield "node", [f"{figures['id']} of cluster {figures['cluster']!r} at {figures['address']}, {starts}"]
    yield "version", [f"aioraft {figures['version']}"]
    yield "role", [f"{figures['role']} in term {figures['term']}{_leads(figures)}"]
    if figures["trouble"] is not None:
        yield "trouble", [figures["trouble"]]
    yield "log", list(_log(figures))
    snapshot = f"of entry {figures['snapshot_index']}, {of_bytes(figures['snapshot_bytes'])}"
    yield "snapshot", [snapshot if figures["snapshot_index"] else "none yet"]
    yield "proposals", [f"{figures['pending_proposals']} of this node under way, {figures['reproposals']} sent again"]
    took = f"the last took {_ms(figures['fsync_last_ns'])}, the longest {_ms(figures['fsync_max_ns'])}"
    yield "fsyncs", [f"{figures['fsyncs']}; {took}" if figures["fsyncs"] else "none yet"]
    if figures["peers"]:
        yield "peers", columns(_peers(figures))


def _leads(figures: NodeStatus) -> str:
    leader = figures["leader"]
    return "" if leader == figures["id"] else "; no leader is known" if leader is None else f"; node {leader} leads"


def _peers(figures: NodeStatus) -> Iterator[tuple[object, ...]]:
    # How far the others are, only the leader knows.
    leads = figures["leader"] == figures["id"]
    yield ("node", "address", *(("holds", "sent as") if leads else ()), "connection")
    for peer in figures["peers"]:
        holds = "" if peer["matched"] is None else peer["matched"]
        connection = "up" if peer["connected"] else peer["trouble"] or "down"
        yield (peer["id"], peer["address"], *((holds, peer["state"] or "") if leads else ()), connection)


def _log(figures: NodeStatus) -> Iterator[str]:
    if figures["last_index"] < figures["first_index"]:
        yield f"no entries, begins at {figures['first_index']}"
    else:
        yield f"entries {figures['first_index']} to {figures['last_index']}, {of_bytes(figures['log_bytes'])} on disk"
    behind = figures["applied"] - figures["python_applied"]
    yield f"committed through {figures['commit']}, applied through {figures['python_applied']}" + (
        f" ({behind} wait for the application)" if behind > 0 else ""
    )


def _ms(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:.1f} ms"
