"""`aioraft inspect`: what a data directory holds."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from aioraft import RaftError, _core

from ._command import Command, CommandError, Status
from ._table import columns, of_bytes, sections

if TYPE_CHECKING:
    from ._report import Members, Report

__all__ = ["COMMAND"]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data_dir", metavar="DATA_DIR", help="the path that the node was started with as data_dir")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, whose keys are in docs/operations.md"
    )


def _run(arguments: argparse.Namespace) -> Status:
    try:
        report = cast("Report", _core.inspect(arguments.data_dir))
    except RaftError as error:
        raise CommandError(str(error), Status.UNREADABLE) from error
    text = json.dumps(report, indent=2) + "\n" if arguments.json else sections(_parts(report))
    sys.stdout.write(text)
    return Status.UNWELL if report["damage"] else Status.OK


COMMAND = Command(
    name="inspect",
    summary="show what a data directory holds; changes nothing",
    description="""\
Shows what a data directory holds: whose it is, hard state, log, members, sessions, snapshots, tail guard, and what is
damaged. Every byte of the log and of whole snapshots is read and checked.

Changes nothing there and holds no lock, so that a node may run, or be started, meanwhile. Of the directory of a running
node it shows some moment of the recent past.
""",
    add_arguments=_add_arguments,
    run=_run,
)


def _parts(report: Report) -> Iterator[tuple[str, list[str]]]:
    format_ = "nothing was written there yet" if report["format"] is None else f"format {report['format']}"
    if report["format"] is None and report["damage"]:
        format_ = "of no format that can be read"
    use = "; a running node has it open" if report["locked"] else ""
    yield "directory", [f"{report['data_dir']}: {format_}{use}"]
    yield "damage", report["damage"] or ["none was found"]
    if (node := report["node"]) is not None:
        yield "node", [f"{node['id']} of cluster {node['cluster']!r}, {node['stage']}, start {node['boot']}"]
        yield "identity", [node["identity"]]
        if node["founders"]:
            yield "founders", columns([("node", "identity"), *((it["id"], it["identity"]) for it in node["founders"])])
        if node["peers"]:
            yield (
                "remembers",
                columns(
                    [
                        ("node", "start", "term", "voted in", "committed", "identity"),
                        *(
                            (it["id"], it["boot"], it["term"], it["voted_term"], it["index"], it["identity"])
                            for it in node["peers"]
                        ),
                    ]
                ),
            )
    if (hard := report["hard_state"]) is not None:
        vote = "no vote" if hard["vote"] is None else f"voted for {hard['vote']}"
        yield "hard state", [f"term {hard['term']}, {vote}, committed {hard['commit']}"]
    yield "log", list(_log(report))
    yield "members", list(_members(report))
    if report["timestamp_ns"] is not None:
        yield "time", [f"{report['timestamp_ns'] / 1e9:.3f} s of replicated time"]
    if report["sessions"]:
        rows = ((it["origin"], it["boot"], it["floor"], it["applied_ahead"]) for it in report["sessions"])
        yield "sessions", columns([("node", "start", "floor", "applied ahead"), *rows])
    yield "snapshots", list(_snapshots(report))
    if (guard := report["guard"]) is not None:
        found = "none can be read" if guard["found_batch"] is None else f"{guard['found_batch']} can be read"
        yield (
            "guard",
            [f"batch {guard['durable_batch']} was durable, and {found}; written every {guard['period_ms']} ms"],
        )


def _log(report: Report) -> Iterator[str]:
    log = report["log"]
    if log is None:
        return
    if log["last_index"] < log["first_index"]:
        yield f"no entries, begins at {log['first_index']}"
    else:
        kinds = ", ".join(f"{count} {kind.replace('_', '-')}" for kind, count in log["entries"].items() if count)
        yield f"entries {log['first_index']} to {log['last_index']} (term {log['last_term']}): {kinds or 'unreadable'}"
    yield f"{of_bytes(log['bytes'])} in {log['files']} file{'s' if log['files'] != 1 else ''}"


def _members(report: Report) -> Iterator[str]:
    membership = report["membership"]
    if membership["committed"] is not None:
        yield f"{_said(membership['committed'])}, at entry {membership['committed']['index']}"
    if membership["snapshot"] is not None:
        yield f"{_said(membership['snapshot'])}, in the snapshot at entry {membership['snapshot']['index']}"

    if membership["members"]:
        rows = (
            (
                it["id"],
                it["address"] or "",
                it["identity"] or "not met yet",
                " ".join(f"{k}={v}" for k, v in it["metadata"].items()),
            )
            for it in membership["members"]
        )
        yield from columns([("node", "address", "identity", ""), *rows])
    if membership["retired"]:
        ids = ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in membership["retired"])
        yield f"removed {ids}"


def _said(members: Members) -> str:
    parts = (
        ("voters", members["voters"]),
        ("learners", members["learners"]),
        ("leaving voters", members["voters_outgoing"]),
        ("next learners", members["learners_next"]),
    )
    return "; ".join(f"{name} {', '.join(map(str, ids))}" for name, ids in parts if ids)


def _snapshots(report: Report) -> Iterator[str]:
    if not report["snapshots"]:
        return
    rows: list[tuple[object, ...]] = [("index", "term", "size", "state", "file")]
    for it in report["snapshots"]:
        state = it["problem"] or ("in use" if it["named"] else "left over" if it["state"] == "whole" else it["state"])
        rows.append((it["index"], it["term"], of_bytes(it["bytes"]), state, it["file"]))
    yield from columns(rows)
