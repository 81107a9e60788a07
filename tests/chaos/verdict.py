"""What a run has shown: the replicas' own reports beside what their clients were told."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Iterable
from typing import Any

import history
from ledger import Ledger

SHOWN = 10


def agree(reports: Iterable[dict[str, Any]]) -> bool:
    """Whether all replicas stand at the same index. Raises if they are not equal there."""
    digests = collections.defaultdict(set)
    for report in reports:
        digests[report["index"]].add((report["digest"], str(report["applied"])))
    for index, found in digests.items():
        assert len(found) == 1, f"the replicas differ at index {index}: {found}"
    return len(digests) == 1


def check_calls(
    histories: pathlib.Path, report: dict[str, Any], killed: set[str]
) -> tuple[collections.Counter[str], list[str]]:
    """Count how the calls ended, and say what is wrong with that, given what one replica has applied.

    `killed` are the incarnations (names of history files) whose last calls may have no end.
    """
    ends: collections.Counter[str] = collections.Counter()
    known, acknowledged, refused = Ledger(), Ledger(), Ledger()
    unended: list[str] = []
    for path in sorted(histories.iterdir()):
        for number, call in history.read(path).items():
            name = f"{path.name}.{number}"
            ends[call.end or "unended"] += 1
            if call.end is None and path.name not in killed:
                unended.append(name)
            if call.is_read:
                continue
            known.add(name)
            if call.end in ("ok", "applied"):
                acknowledged.add(name)
            elif call.end == "refused":
                refused.add(name)
    applied = Ledger.load(report["applied"])
    wrong = {
        "acknowledged and lost": acknowledged - applied,
        "refused and applied": refused & applied,
        "applied twice": report["doubled"],
        "applied and never asked for": applied - known,
        "without an end, though nobody killed their process": unended,
    }
    return ends, [
        f"{len(calls)} calls are {what}: {', '.join(calls[:SHOWN])}" for what, calls in wrong.items() if calls
    ]
