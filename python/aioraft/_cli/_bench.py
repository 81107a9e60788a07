"""`aioraft bench`: what a cluster with this configuration does on this disk."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ._command import Command, Status
from ._table import columns, sections

if TYPE_CHECKING:
    from ._bench_report import BenchReport

__all__ = ["COMMAND"]

_BAR = 40


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=_count, default=3, metavar="N", help="processes that replicate (default 3)")
    parser.add_argument("--in-flight", type=_count, default=256, metavar="N", help="proposals at once (default 256)")
    parser.add_argument("--value-bytes", type=_count, default=64, metavar="N", help="of each proposal (default 64)")
    parser.add_argument("--seconds", type=_seconds, default=10.0, metavar="S", help="how long to measure (default 10)")
    parser.add_argument("--dir", default=".", metavar="DIR", help="on the disk to measure (default: where you are)")
    parser.add_argument("--config", metavar="MODULE:NAME", help="a Config of yours, such as app.settings:CONFIG")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _run(arguments: argparse.Namespace) -> Status:
    from ._bench_cluster import measure  # brings asyncio

    report = measure(arguments)
    sys.stdout.write(json.dumps(report, indent=2) + "\n" if arguments.json else sections(_parts(report)))
    return Status.OK


COMMAND = Command(
    name="bench",
    summary="measure a cluster with your configuration on your disk",
    description="""\
Starts a cluster of its own, a process a node on this machine, in a new folder within --dir that is removed afterwards.
The leader's process proposes, with so many proposals in flight, and each is answered when it is fsynced by a majority
and applied. For comparison it measures before that how long the disk takes for an append and an fdatasync.

No other node and no data directory is touched. Progress is on standard error.
""",
    add_arguments=_add_arguments,
    run=_run,
)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number <= 86_400:
        raise ValueError
    return number


def _parts(report: BenchReport) -> Iterator[tuple[str, list[str]]]:
    shape = f"{report['in_flight']} in flight, {report['value_bytes']} bytes each, for {report['seconds']:g} s"
    yield "load", [f"{report['nodes']} node{'s' if report['nodes'] != 1 else ''}, {shape}"]
    yield (
        "disk",
        [f"append + fdatasync takes {report['fdatasync_ms']['p50']:.2f} ms (median of an otherwise idle disk)"],
    )
    yield "rate", [f"{report['proposals_per_s']:,.0f} proposals a second"]
    yield "latency", [f"{name:<6}{value:10.2f} ms" for name, value in report["latency_ms"].items()]
    yield "", list(_bars(report["histogram"]))


def _bars(histogram: list[tuple[float, int]]) -> Iterator[str]:
    most = max(count for _, count in histogram)
    rows = [(f"up to {bound:.2f} ms", count, "#" * round(count / most * _BAR)) for bound, count in histogram]
    yield from columns(rows)
