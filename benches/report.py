"""What was measured, as tables, as JSON and as a section of docs/performance.md."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from load import Load

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results"
TITLES = {
    "propose": "Proposals of {size:,} bytes",
    "propose_many": "Calls of `propose_many`, each of 256 values of {size:,} bytes",
    "read": "Linearizable reads",
}
README = HERE.parent / "README.md"
PAGE = HERE.parent / "docs" / "performance.md"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measurement: who, under which load, and what was found (or `failed`, and why)."""

    who: str
    load: Load
    found: dict[str, Any]
    note: str | None = None
    """What must be said of it."""


def medians(cells: Iterable[Cell]) -> list[Cell]:
    """One cell for each contender and load: medians of the rounds; `failed` if no round went well."""
    rounds: dict[tuple[str, Load], list[Cell]] = {}
    for cell in cells:
        rounds.setdefault((cell.who, cell.load), []).append(cell)
    return [
        Cell(who, load, _median([cell.found for cell in of]), next((cell.note for cell in of if cell.note), None))
        for (who, load), of in rounds.items()
    ]


def _median(all_found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    good = [found for found in all_found if "failed" not in found]
    if not good:
        return all_found[0]
    middle: dict[str, Any] = {key: statistics.median(found[key] for found in good) for key in good[0]}
    return middle | {"rounds": len(good), "rounds_failed": len(all_found) - len(good)}


def load_tables(cells: Iterable[Cell], ours: str) -> str:
    """A table for each kind of load and size of values, with how many times its rate `ours` reaches."""
    parts: dict[str, list[Cell]] = {}
    for cell in cells:
        kind = TITLES[cell.load.what].format(size=cell.load.value_bytes)
        parts.setdefault(kind, []).append(cell)
    titles = ("in flight", "", "per second", "p50 ms", "p99 ms", "CPU us each", "peak MiB", f"{ours} is")
    text = ""
    for kind, part in parts.items():
        rates = {cell.load.in_flight: cell.found.get("rate") for cell in part if cell.who == ours}
        part.sort(key=lambda cell: cell.load.in_flight)
        text += f"{kind}:\n\n{table(titles, [_row(cell, rates.get(cell.load.in_flight), ours) for cell in part])}\n"
    return text + "".join(f"{line}\n" for line in dict.fromkeys(chain(*(map(_remarks, chain(*parts.values()))))))


def _remarks(cell: Cell) -> Iterator[str]:
    if cell.note:
        yield f"- {cell.who}: {cell.note}."
    if "failed" in cell.found:
        yield f"- {cell.who} failed: {cell.found['failed']}."
    elif failed := cell.found["rounds_failed"]:
        at = f"with {cell.load.in_flight} in flight of {cell.load.value_bytes:,} bytes"
        yield f"- {cell.who} failed in {failed} of {failed + cell.found['rounds']} rounds {at}."


def _row(cell: Cell, our_rate: float | None, ours: str) -> list[object]:
    if "failed" in cell.found:
        return [cell.load.in_flight, cell.who, "failed", *[None] * 5]
    ratio = our_rate / cell.found["rate"] if our_rate and cell.who != ours else None
    figures = [float(cell.found[key]) for key in ("rate", "p50_ms", "p99_ms", "cpu_us", "peak_mib")]
    shown = f"{ratio:.2g}x" if ratio and ratio < 10 else f"{ratio:,.0f}x" if ratio else None
    return [cell.load.in_flight, cell.who, *figures, shown]


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table that can be read as it is; what looks like a number stands to the right."""
    texts = [titles, *([_shown(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(titles))]
    is_number = [
        all(re.match(r"([\d.,]*x?|failed)$", row[column]) for row in texts[1:]) for column in range(len(titles))
    ]
    lines = [
        " | ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, is_number, strict=True)
        )
        for row in texts
    ]
    rule = " | ".join(
        "-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, is_number, strict=True)
    )
    return "".join(f"| {line} |\n" for line in (lines[0], rule, *lines[1:]))


def _shown(value: object) -> str:
    """Three digits that count."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def machine() -> dict[str, Any]:
    """On what, and with what, it was measured."""
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    versions = {package: _version(package) for package in ("aioraft", "aetcd", "grpcio", "pysyncobj")}
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average_before": os.getloadavg()[0],
        "commit": _first_line("git", "rev-parse", "--short", "HEAD"),
        "versions": versions | {"etcd": _first_line("etcd", "--version")},
    }


def _first_line(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    said = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False).stdout
    return said.partition("\n")[0].rpartition(" ")[2]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def write_json(name: str, result: dict[str, Any], folder: pathlib.Path = RESULTS) -> pathlib.Path:
    """In the place of the one before."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, indent=1, default=_plain) + "\n")
    return path


def _plain(value: object) -> object:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else str(value)


def publish(name: str, text: str, page: pathlib.Path) -> None:
    """Put `text` into its place in a page."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, _, rest = page.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page} has no place for {name}: it needs the lines {begin.strip()} and {end.strip()}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
