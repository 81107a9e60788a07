"""Whether a state machine comes out of a snapshot as it went in."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final, cast

from .._core import Entry
from .._state_machine import StateMachine, has_batch
from ._forms import of_result
from ._replicas import BYTES, CAUSES, Disagreement, Record, chunks_of, collect, compare, has_snapshot, shown

__all__ = ["check_snapshots"]

SNAPSHOTS: Final = 6
"""Taken in one life of a cluster."""

FOLLOWING: Final = 32
"""Entries that a restored state machine goes on with, at least, while there are any."""

LOCAL: Final = (OSError, MemoryError, RecursionError)
"""What would stop a node, and says nothing about its snapshots."""


class Walker:
    """A state machine on its way along the log."""

    def __init__(self, machine: StateMachine[Any], log: list[Record], where: str, position: int = 0) -> None:
        self.machine = machine
        self.position = position
        self._log = log
        self._where = where
        self._is_batch = has_batch(machine)

    def step(self) -> None:
        """Apply the next entry, if there is one, which must come to what it came to before."""
        if self.position < len(self._log):
            record = self._log[self.position]
            self.position += 1
            compare(record, self._outcome(record.entry), self._where)

    def go_to(self, position: int) -> None:
        """Apply everything before a position."""
        while self.position < min(position, len(self._log)):
            self.step()

    def _outcome(self, entry: Entry) -> str:
        value: object = None
        try:
            value = self.machine.apply_batch([entry])[0] if self._is_batch else self.machine.apply(entry)
        except LOCAL:
            raise
        except Exception as error:
            return of_result(None, error)
        return of_result(None, value) if isinstance(value, Exception) and self._is_batch else of_result(value, None)


def check_snapshots(factory: Callable[[], StateMachine[Any]], log: list[Record], rng: random.Random) -> int:
    """Take snapshots at random places of a log and restore them; returns how many, raises `Disagreement`."""
    if not log:
        return 0
    walker = Walker(factory(), log, "a replica that applied the log again")
    if not has_snapshot(walker.machine):
        return 0
    places = sorted({rng.randint(1, len(log)) for _ in range(SNAPSHOTS)})
    taken = 0
    for place in places:
        if place < walker.position:  # an earlier snapshot took until here
            continue
        try:
            walker.go_to(place)
            _round_trip(walker, factory, log, rng)
        except LOCAL:
            break
        taken += 1
    return taken


def _round_trip(
    walker: Walker, factory: Callable[[], StateMachine[Any]], log: list[Record], rng: random.Random
) -> None:
    place = walker.position
    entry = log[place - 1].entry
    expected = collect(walker.machine, entry)
    chunks, is_whole = _take_slowly(walker, entry)
    if (found := b"".join(chunks)) != expected:
        raise Disagreement(
            "a snapshot does not observe later entries",
            entry,
            f"The snapshot was taken after this entry. Read at once it is\n  {shown(expected, found)};\n"
            f"with entries applied before and between its chunks it is\n  {shown(found, expected)}.\n"
            "Copy what `snapshot` returns, or what it is made of, before it returns.",
        )
    # A node that lags behind is restored with a state of its own, which must go: what a while ago was there and is not
    # now is what a careless restore keeps, so it seldom lags far.
    restored = factory()
    lag = rng.choice([place, 1 + rng.randrange(place), *(1 + rng.randrange(min(place, far)) for far in (8, 32))])
    Walker(restored, log, "").go_to(place - lag)
    try:
        restored.restore(chunks[0] if is_whole else iter(chunks))
    except LOCAL:
        raise
    except NotImplementedError as error:
        raise _failed(entry, "There is a snapshot(), and no restore().", error) from error
    except Exception as error:
        raise _failed(entry, f"restore() raised {error!r}.", error) from error
    has_equality = type(restored).__eq__ is not object.__eq__
    if not has_equality and (again := collect(restored, entry)) != expected:
        raise _failed(entry, _differently(expected, again, "in the replica", "in the restored one"))
    follower = Walker(
        restored, log, f"a state machine restored from a snapshot after the entry at index {entry.index}", place
    )
    end = max(walker.position, place + FOLLOWING)
    follower.go_to(end)
    walker.go_to(end)
    if has_equality and restored != walker.machine:
        raise _failed(entry, "By its own == the restored state machine differs from the replica.")


def _take_slowly(walker: Walker, entry: Entry) -> tuple[list[bytes], bool]:
    """Take a snapshot, with entries applied before and between its chunks; and whether it is one value."""
    try:
        taken = walker.machine.snapshot()
        walker.step()
        if callable(taken):
            taken = taken()
        if isinstance(taken, BYTES):
            return [bytes(cast("bytes", taken))], True
        chunks: list[bytes] = []
        for chunk in chunks_of(taken):
            chunks.append(chunk)
            walker.step()
        return chunks, False
    except (Disagreement, *LOCAL):
        raise
    except Exception as error:
        text = f"It raised {error!r} when entries were applied before and between its chunks."
        raise Disagreement("a snapshot does not observe later entries", entry, text, error) from error


def _differently(one: bytes, other: bytes, where: str, there: str) -> str:
    return (
        f"snapshot() returned\n  {shown(one, other)}  {where},\n  {shown(other, one)}  {there}.\n"
        "`restore` does not replace the whole state, or " + CAUSES.partition("or\n")[2]
    )


def _failed(entry: Entry, details: str, cause: BaseException | None = None) -> Disagreement:
    return Disagreement(
        "restore brings back what snapshot took", entry, f"The snapshot was taken after this entry. {details}", cause
    )
