"""aioraft._errors: the hierarchy is as drawn, and each error says what became of the proposal."""

from __future__ import annotations

import copy
import inspect
import pathlib
import pickle
import re

import pytest

import aioraft
from aioraft import _errors

ROOT = pathlib.Path(__file__).parents[2]
ERRORS = [one for one in vars(_errors).values() if inspect.isclass(one) and issubclass(one, aioraft.RaftError)]

SAMPLES = [
    aioraft.ConfigError("m"),
    aioraft.FatalError("m"),
    aioraft.RemovedError("m", False),
    aioraft.SupersededError("m"),
    aioraft.NodeClosedError("m", None),
    aioraft.NotCommittedError("m"),
    aioraft.ProposalTimeoutError("m"),
    aioraft.ProposalTooLargeError("m"),
    aioraft.OutcomeUnknownError("m"),
    aioraft.AppliedWithoutResultError("m", 7),
    aioraft.ApplyError("m", 7),
    aioraft.ReadTimeoutError("m"),
    aioraft.SnapshotError("m"),
    aioraft.SnapshotTimeoutError("m"),
    aioraft.TransferError("m"),
    aioraft.TransferTimeoutError("m"),
    aioraft.MembershipError("m"),
    aioraft.MembershipTimeoutError("m", None),
    aioraft.Compacted("m", 7),
    aioraft.ReentrantCallError("m"),
    aioraft.WrongLoopError("m"),
]


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling_and_copying(error: aioraft.RaftError) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == "m"
        assert twin.outcome is error.outcome
        assert getattr(twin, "index", None) == getattr(error, "index", None)


def test_outcomes() -> None:
    outcome = aioraft.Outcome
    assert aioraft.NodeClosedError("m", False).outcome is outcome.NOT_COMMITTED
    assert aioraft.NodeClosedError("m", None).outcome is outcome.UNKNOWN
    assert aioraft.ProposalTimeoutError("m").outcome is outcome.NOT_COMMITTED
    assert aioraft.OutcomeUnknownError("m").outcome is outcome.UNKNOWN
    assert aioraft.FatalError("m").outcome is outcome.UNKNOWN
    assert aioraft.RemovedError("m", False).outcome is outcome.NOT_COMMITTED
    assert aioraft.MembershipError("m").outcome is outcome.NOT_COMMITTED
    assert aioraft.MembershipTimeoutError("m", None).outcome is outcome.UNKNOWN
    assert aioraft.AppliedWithoutResultError("m", 1).outcome is outcome.APPLIED_WITHOUT_RESULT
    assert aioraft.ApplyError("m", 1).outcome is outcome.APPLIED
    assert aioraft.ReadTimeoutError("m").outcome is None


def test_deadlines_are_caught_as_timeouts_and_mistakes_as_value_errors() -> None:
    timeouts = {one for one in ERRORS if issubclass(one, TimeoutError)}
    assert timeouts == {
        aioraft.ProposalTimeoutError,
        aioraft.OutcomeUnknownError,
        aioraft.ReadTimeoutError,
        aioraft.SnapshotTimeoutError,
        aioraft.TransferTimeoutError,
        aioraft.MembershipTimeoutError,
    }
    assert {one for one in ERRORS if issubclass(one, ValueError)} == {
        aioraft.ConfigError,
        aioraft.ProposalTooLargeError,
    }
    assert not issubclass(aioraft.FatalError, aioraft.ProposalError)


def test_the_drawing_at_the_top_of_the_module_is_the_hierarchy() -> None:
    parents: dict[int, str] = {}
    drawn: dict[str, str] = {}
    for line in (_errors.__doc__ or "").splitlines():
        found = re.match(r"([ │├└─]*)(\w+)  ", line)
        if found:
            depth = len(found[1])
            drawn[found[2]] = parents[max(above for above in parents if above < depth)] if depth else "Exception"
            parents = {above: name for above, name in parents.items() if above < depth} | {depth: found[2]}
    real = {one.__name__: one.__bases__[0].__name__ for one in ERRORS}
    assert drawn == real


def test_every_error_has_its_row_in_the_documentation() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
    bases = {"RaftError", "ProposalError"}
    assert sorted(rows) == sorted(one.__name__ for one in ERRORS if one.__name__ not in bases)
