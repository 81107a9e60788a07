"""Contenders that take turns: in each round every one is started afresh and put under its loads, another one first."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from child import Silent, Usage
from contenders import Cluster, Contender
from load import Load
from report import Cell

Plan = Sequence[tuple[Contender, Sequence[Load]]]


async def in_turns(plans: Sequence[Plan], rounds: int, directory: str) -> list[Cell]:
    """Measure all of `plans` so many times, on the disk of `directory`; says on standard error how far it is."""
    cells: list[Cell] = []
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir=directory, prefix=".bench-") as root:
        for number in range(rounds):
            for plan in plans:
                queue = collections.deque(plan)
                queue.rotate(-number)
                for contender, loads in queue:
                    told = f"round {number + 1} of {rounds}: {contender.name}, {loads[0].value_bytes} bytes"
                    print(f"[{time.monotonic() - begin:4.0f} s] {told}", file=sys.stderr)
                    with tempfile.TemporaryDirectory(dir=root) as folder:
                        cells += await turn(contender, loads, pathlib.Path(folder))
    return cells


async def turn(contender: Contender, loads: Sequence[Load], folder: pathlib.Path) -> list[Cell]:
    """One contender, freshly started, under one load after the other."""
    cells: list[Cell] = []
    try:
        async with contender.start(folder) as cluster:
            for load in loads:
                found = await measure(cluster, load)
                cells.append(Cell(contender.name, load, found))
    except Silent as error:
        cells += [Cell(contender.name, load, {"failed": str(error)}) for load in loads[len(cells) :]]
    note = alarms(contender, folder)
    return [dataclasses.replace(cell, note=note) for cell in cells]


def alarms(contender: Contender, folder: pathlib.Path) -> str | None:
    """How often its processes logged that something is wrong with its answers."""
    if contender.alarm is None:
        return None
    times = sum(log.read_text(errors="replace").count(contender.alarm) for log in folder.glob("*.log"))
    return f'its nodes logged "{contender.alarm}" ({times}x)' if times else None


async def measure(cluster: Cluster, load: Load) -> dict[str, Any]:
    """What came of a load, and what all processes of the cluster used."""
    usage = Usage(cluster.children)
    cluster.client.order(load=dataclasses.asdict(load))
    found: dict[str, Any] = await cluster.client.expect("found", load.seconds + 60)
    if "failed" in found:
        return found
    return {"cpu_us": usage.cpu_s() / found["calls"] * 1e6, "peak_mib": usage.peak_bytes() / 2**20} | found
