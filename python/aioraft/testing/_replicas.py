"""The replicas of a simulated state machine, and whether they agree: one entry after the other."""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar, cast

from .._core import Entry
from .._state_machine import StateMachine, has_batch
from ._clocks import Clock, Clocks
from ._forms import digest, of_result
from ._shaking import shake

__all__ = ["BYTES", "Disagreement", "Judge", "Record", "Replica", "collect", "has_snapshot"]

R = TypeVar("R")

BYTES_PER_ENTRY: Final = 4096
"""States are compared at every entry while they are smaller than this, and larger ones as much more seldom."""

OBJECTS_PER_ENTRY: Final = 10
"""The sets of a state are reordered before every entry while it holds fewer objects, and larger ones more seldom."""

SHOWN: Final = 200

BYTES: Final = (bytes, bytearray, memoryview)


@dataclasses.dataclass(slots=True)
class Record:
    """An entry of the log, and what it came to where it was applied first."""

    entry: Entry
    outcome: str
    where: str
    state: bytes | None = None


class Disagreement(Exception):
    """A check fails; becomes a `SimulationError`."""

    def __init__(self, check: str, entry: Entry | None, details: str, cause: BaseException | None = None) -> None:
        super().__init__(check, entry, details)
        self.check = check
        self.entry = entry
        self.details = details
        self.cause = cause


class Judge:
    """Knows what every entry came to, and objects when it comes to something else."""

    def __init__(self) -> None:
        self.log: list[Record] = []
        self.stops = 0
        self.last_stop: Disagreement | None = None
        self._stopped_at: set[tuple[int, int]] = set()
        self._next_state = 0

    def settled(self, replica: Replica[Any], entry: Entry, outcome: str) -> None:
        """A replica has applied an entry."""
        position = replica.position
        replica.position += 1
        if position < len(self.log):
            record = self.log[position]
            compare(record, outcome, replica.where)
            if record.state is not None:
                self._compare_state(record, record.state, position, replica)
            return
        record = Record(entry, outcome, replica.where)
        self.log.append(record)
        if replica.has_snapshot and position >= self._next_state:
            record.state = replica.state(entry)
            self._next_state = position + 1 + len(record.state) // BYTES_PER_ENTRY

    def stopped(self, replica: Replica[Any], entry: Entry, message: str, error: BaseException | None) -> None:
        """A replica's node stops instead of applying an entry."""
        self.stops += 1
        check = "a node that was started again goes on"
        self.last_stop = Disagreement(check, entry, f"{message}\nNode {replica.node} kept stopping.", error)
        where = (replica.node, entry.index)
        if where in self._stopped_at:
            details = f"{message}\nNode {replica.node} was started again with a fresh state machine, and stopped again."
            raise Disagreement(check, entry, details, error)
        self._stopped_at.add(where)

    def _compare_state(self, record: Record, expected: bytes, position: int, replica: Replica[Any]) -> None:
        state = replica.state(record.entry)
        if state == expected:
            return
        earlier = (one.entry.index for one in reversed(self.log[:position]) if one.state is not None)
        before = next(earlier, None)
        since = "" if before is None else f"; after the entry at index {before} they were equal"
        raise Disagreement(
            "replicas agree on the state",
            record.entry,
            f"After this entry snapshot() returned{since}\n"
            f"  {shown(expected, state)}  on {record.where},\n"
            f"  {shown(state, expected)}  on {replica.where}.\n{CAUSES}",
        )


CAUSES: Final = (
    "`apply` depends on more than the state and the entry (a local clock, randomness, the order of a set?), or\n"
    "`snapshot` writes equal states as different bytes (sort what has no order)."
)


def compare(record: Record, outcome: str, where: str) -> None:
    """Object if an entry has come to something else than where it was applied first."""
    if outcome != record.outcome:
        raise Disagreement(
            "apply is deterministic",
            record.entry,
            f"It came to\n  {record.outcome}  on {record.where},\n  {outcome}  on {where}.\n"
            "`apply` depends on more than the state and the entry: a local clock, randomness, the order of a set?",
        )


def shown(state: bytes, other: bytes) -> str:
    """Return the part of a state in which it differs from another one."""
    same = next((at for at, (one, two) in enumerate(zip(state, other, strict=False)) if one != two), None)
    begin = max(0, (min(len(state), len(other)) if same is None else same) - SHOWN // 4)
    part = state[begin : begin + SHOWN]
    if part == state:
        return repr(state)
    return f"{part!r} from byte {begin} of {len(state)} (digest {digest(state)})"


class Replica(StateMachine[R]):
    """A state machine on a node of the simulated cluster."""

    def __init__(
        self,
        judge: Judge,
        clocks: Clocks,
        machine: StateMachine[R],
        rng: random.Random,
        clock: Clock,
        *,
        node: int,
        start: int,
    ) -> None:
        self.machine = machine
        self.node = node
        self.where = f"node {node}" if start == 1 else f"node {node} (its start {start})"
        self.now = 0  # set by the world
        self.position = 0
        self.is_batch = has_batch(machine)
        self.has_snapshot = has_snapshot(machine)
        self._judge = judge
        self._clocks = clocks
        self._clock = clock
        self._apply = machine.apply
        self._rng = rng
        self._next_shake = 0
        self._pending: deque[Entry] = deque()

    def apply(self, entry: Entry) -> R:
        """Apply it, by the node's own clock."""
        self._shake()
        self._pending.append(entry)
        self._clock.set(self.now)
        self._clocks.current = self._clock
        try:
            return self._apply(entry)
        finally:
            self._clocks.current = None

    def apply_batch(self, entries: Sequence[Entry]) -> Sequence[R | Exception]:
        """Apply them, by the node's own clock."""
        self._shake()
        self._pending.extend(entries)
        self._clock.set(self.now)
        with self._clocks.at(self._clock):
            return self.machine.apply_batch(entries)

    def _shake(self) -> None:
        if self.position >= self._next_shake:
            self._next_shake = self.position + 1 + shake(self.machine, self._rng) // OBJECTS_PER_ENTRY

    def settle(self, value: R, error: BaseException | None) -> None:
        """Told by the world: what the next entry came to, as a node understands it."""
        self._judge.settled(self, self._pending.popleft(), of_result(value, error))

    def refuse(self, message: str, error: BaseException | None) -> None:
        """Told by the world: the node stops with the next entry unapplied."""
        self._judge.stopped(self, self._pending[0], message, error)

    def state(self, entry: Entry) -> bytes:
        """Return the bytes of a snapshot."""
        self._clocks.current = self._clock
        try:
            return collect(self.machine, entry)
        finally:
            self._clocks.current = None


def has_snapshot(machine: StateMachine[Any]) -> bool:
    """Whether the class of `machine` has a snapshot() of its own."""
    own: Any = type(machine)
    base: Any = StateMachine
    return own.snapshot is not base.snapshot


def collect(machine: StateMachine[Any], entry: Entry) -> bytes:
    """Return the bytes of a snapshot, however it comes."""
    try:
        taken = machine.snapshot()
        return b"".join(chunks_of(taken() if callable(taken) else taken))
    except Exception as error:
        raise Disagreement("snapshot works", entry, f"After this entry snapshot() raised {error!r}.", error) from error


def chunks_of(taken: object) -> Iterable[bytes]:
    """Return the chunks that `snapshot` has returned."""
    if isinstance(taken, BYTES):
        return (bytes(cast("bytes", taken)),)
    if isinstance(taken, str) or not isinstance(taken, Iterable):
        raise TypeError(
            f"snapshot() returned {type(taken).__name__}: it must be bytes, an iterable of chunks, or a callable that "
            "returns one of them"
        )
    return (_chunk(chunk) for chunk in cast("Iterable[object]", taken))


def _chunk(chunk: object) -> bytes:
    if not isinstance(chunk, BYTES):
        raise TypeError(f"a chunk of snapshot() is {type(chunk).__name__}: it must be bytes")
    return bytes(cast("bytes", chunk))
