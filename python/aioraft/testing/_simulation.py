"""`Simulation`: a state machine in a simulated cluster, where a seed decides everything."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

from .._core import Entry, World
from .._errors import RaftError
from .._state_machine import StateMachine, check, check_factory, shared
from ._clocks import Clock, Clocks
from ._forms import digest
from ._replicas import Disagreement, Judge, Record, Replica, has_snapshot
from ._snapshots import check_snapshots

__all__ = ["Simulation", "SimulationError", "SimulationReport"]

R = TypeVar("R")

LIFE: Final = 60.0
"""Virtual seconds of a cluster's life, from its birth to the comparison at its end."""

NOW: Final = 1_735_689_000.0
"""Ten minutes before a year ends, in UTC: nodes' clocks differ even in that."""

APART: Final = 1.5 * 86_400.0
"""Between two nodes' clocks, and up to a third of it more or less."""

SPEEDS: Final = (1, 60, 3600)
"""At which nodes' clocks run: whatever takes a second or a day has passed on one node and not on another."""

TRANSCRIPT_LINES: Final = 40

_one_at_a_time = threading.RLock()


class SimulationError(AssertionError):
    """A simulated state machine failed a check.

    `seed` runs the cluster again in which it failed, `check` says what must hold, `entry` is the first entry at which
    it does not (None if there is none), `transcript` what happened before, if it happens again as it did.
    """

    def __init__(
        self, check: str, *, seed: int, entry: Entry | None, details: str, again: str, transcript: Sequence[str] = ()
    ) -> None:
        self.seed = seed
        self.check = check
        self.entry = entry
        self.transcript = tuple(transcript)
        at = "" if entry is None else f"\nFirst diverging entry: {entry!r}"
        super().__init__(f"{check}: not with seed {seed}{at}\n{details}\nTo run it again: {again}")


@dataclasses.dataclass(frozen=True)
class SimulationReport:
    """What a simulation went through, in which every check held."""

    seed: int
    """The simulation's."""
    seconds: float
    """Virtual time."""
    took: float
    """Real seconds."""
    lives: int
    """Clusters, one after the other, a virtual minute each."""
    entries: int
    """In their logs."""
    applied: int
    """Calls of `apply` by replicas: each applies every entry, and all again after each start."""
    starts: int
    """Of nodes."""
    stops: int
    """Nodes that stopped because of what `apply` raised (OSError, MemoryError, RecursionError)."""
    leaders: int
    """That were elected."""
    faults: Mapping[str, int]
    """How often each kind of fault began."""
    snapshots: int | None
    """That were taken, compared and restored; None if the state machine has no snapshot()."""
    digest: str
    """Of all entries and results: another process must come to the same one for this seed."""

    @property
    def crashes(self) -> int:
        """Processes that were killed, or lost their machine's power."""
        return self.faults.get("crash", 0)

    @property
    def partitions(self) -> int:
        """Partitions, and links that were cut."""
        return self.faults.get("partition", 0) + self.faults.get("cut link", 0)

    def __str__(self) -> str:
        """All of it, in two lines."""
        snapshots = "no snapshot() to check" if self.snapshots is None else f"{self.snapshots} snapshots restored"
        return (
            f"seed {self.seed}: {self.seconds / 60:g} virtual minutes in {self.took:.1f} s, {self.entries} entries, "
            f"{self.applied} applied, {snapshots},\n"
            f"{self.leaders} leaders, {self.starts} starts, {self.crashes} crashes, {self.partitions} partitions, "
            f"{sum(self.faults.values())} faults in all"
        )


@dataclasses.dataclass(frozen=True)
class Life:
    """One cluster's, in which every check held."""

    seed: int
    log: list[Entry]
    lines: list[str]
    """What each entry came to: the same in every process."""


Command = Callable[[random.Random], bytes]


class Simulation(Generic[R]):
    """`n` replicas (2 to 9) of a state machine in a simulated cluster: the real engine in a made-up world.

    ```python
    report = Simulation(1, 3, Stock, command=lambda rng: b'["bolt", %d]' % rng.randrange(9)).run(seconds=600)
    ```

    The seed decides what happens in it: crashes, losses of power, partitions, broken connections, slow and failing
    disks, hung applications, elections, and which command comes when. `factory` makes a fresh state machine for each
    start of a node. `command` returns the next one, drawn from the `random.Random` it is given and from nothing else;
    or it is a sequence of commands to draw from. docs/testing.md says what is checked.

    Exceptions in `apply` are what they are in a `Node`: an Exception is a result; OSError, MemoryError, RecursionError
    and groups with one of them stop that node, which is started again. Others, such as KeyboardInterrupt, end `run`.
    """

    def __init__(
        self, seed: int, n: int, factory: Callable[[], StateMachine[R]], *, command: Command | Sequence[bytes]
    ) -> None:
        """Nothing runs before `run`."""
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"a seed of {seed}: it must be between 0 and 2**64 - 1")
        if not callable(command) and not command:
            raise ValueError("an empty sequence of commands: there must be one at least to draw")
        check_factory(factory)
        World(seed, n)
        self._seed = seed
        self._n = n
        self._factory = factory
        self._command: Command = command if callable(command) else _drawn_from(command)
        self._lives: list[Life] | None = None  # where they are kept, if they are
        self._how_again = f"Simulation(SEED, {n}, ...).run()"

    @property
    def seed(self) -> int:
        """What decides everything."""
        return self._seed

    def run(self, *, seconds: float = LIFE) -> SimulationReport:
        """Let so many virtual seconds pass, and return what happened in them; raises `SimulationError`.

        They are lived in lives of a minute, rounded up: a cluster is born, most of the time in trouble, healed, and
        compared at its end; the next one has a seed of its own, which an error names. Ctrl-C ends it within a moment.
        """
        __tracebackhide__ = True  # pytest shows the test instead
        began = time.monotonic()
        seeds = list(self._seeds(seconds))
        total = dict.fromkeys(("applied", "starts", "leaders", "entries", "stops"), 0)
        faults: dict[str, int] = {}
        snapshots: int | None = None
        everything = hashlib.blake2b(digest_size=8)
        with _one_at_a_time:
            for seed in seeds:
                guest = _Guest(seed, self._factory, self._command)
                figures = self._live(guest)
                life = guest.life()
                everything.update("\n".join(life.lines).encode(errors="replace"))
                if self._lives is not None:
                    self._lives.append(life)
                for name, count in {**figures, "entries": len(life.log), "stops": guest.judge.stops}.items():
                    if name in total:
                        total[name] += count
                for kind, count in figures["faults"].items():
                    faults[kind] = faults.get(kind, 0) + count
                if guest.has_snapshot:
                    snapshots = (snapshots or 0) + guest.snapshots
        return SimulationReport(
            seed=self._seed,
            seconds=LIFE * len(seeds),
            took=time.monotonic() - began,
            lives=len(seeds),
            faults=faults,
            snapshots=snapshots,
            digest=everything.hexdigest(),
            **total,
        )

    def _seeds(self, seconds: float) -> Generator[int, None, None]:
        if not 0 < seconds < 1e9:
            raise ValueError(f"seconds = {seconds}: it must be a positive number")
        yield self._seed
        rng = random.Random(self._seed)
        for _ in range(-int(-seconds // LIFE) - 1):
            yield rng.getrandbits(48)

    def _live(self, guest: _Guest[R]) -> dict[str, Any]:
        __tracebackhide__ = True
        try:
            with guest.surroundings():
                figures = World(guest.seed, self._n).run(guest)
                guest.check_snapshots()
        except Disagreement as found:
            raise self._error(found, guest.seed) from found.cause
        except RaftError:
            # A node that kept stopping is not there at the end, as the world's own checkers see.
            if guest.judge.last_stop is None:
                raise
            raise self._error(guest.judge.last_stop, guest.seed) from guest.judge.last_stop.cause
        return figures

    def _error(self, found: Disagreement, seed: int) -> SimulationError:
        again = self._how_again.replace("SEED", str(seed))
        transcript = self._transcript(found, seed)
        return SimulationError(
            found.check, seed=seed, entry=found.entry, details=found.details, again=again, transcript=transcript
        )

    def _transcript(self, found: Disagreement, seed: int) -> list[str]:
        """Live through it once more to be told what happens."""
        guest = _Guest(seed, self._factory, self._command)
        world = World(seed, self._n)
        try:
            with guest.surroundings():
                world.run(guest, True)
        except Disagreement as again:
            if (again.check, again.entry) == (found.check, found.entry):
                return world.transcript[-TRANSCRIPT_LINES:]
        except Exception:  # noqa: S110  # the failure to tell of is the first one
            pass
        return []


class _Guest(Generic[R]):
    """What the world asks for, for one life."""

    def __init__(self, seed: int, factory: Callable[[], StateMachine[R]], command: Command) -> None:
        self.seed = seed
        self.judge = Judge()
        self.snapshots = 0
        self.has_snapshot = False
        self._factory = factory
        self._command = command
        self._clocks = Clocks()
        self._starts: dict[int, int] = {}
        self._machines: dict[int, StateMachine[R]] = {}
        self._rng = random.Random(seed)
        self._commands = random.Random(self._rng.getrandbits(64))
        self._client = Clock(NOW)

    @contextlib.contextmanager
    def surroundings(self) -> Generator[None, None, None]:
        """Replace clocks, and make what `random` gives depend on the seed, so that a failure comes again."""
        with self._clocks.at(self._client):
            machine = self._factory()
        state = random.getstate()
        random.seed(self.seed)
        try:
            with self._clocks.installed(machine):
                yield
        finally:
            random.setstate(state)

    def command(self, now: int) -> bytes:
        """Called by the world."""
        self._client.set(now)
        with self._clocks.at(self._client):
            command = self._command(self._commands)
        if not isinstance(command, bytes):
            raise TypeError(f"command returned {type(command).__name__}: a command is bytes")
        return command

    def start(self, now: int, node: int) -> Replica[R]:
        """Called by the world."""
        self._starts[node] = self._starts.get(node, 0) + 1
        clock = self._clock(node)
        clock.set(now)
        with self._clocks.at(clock):
            machine = self._factory()
        check(machine)
        if any(machine is other for other in self._machines.values()):
            raise shared(machine)
        # Not by `claim`: Ctrl-C while a weak reference to the last one is called back would be lost.
        self._machines[node] = machine
        self.has_snapshot = has_snapshot(machine)
        rng = random.Random(self._rng.getrandbits(64))
        return Replica(self.judge, self._clocks, machine, rng, clock, node=node, start=self._starts[node])

    def _clock(self, node: int) -> Clock:
        return Clock(NOW + APART * (node - 2 + self._rng.uniform(0, 1 / 3)), SPEEDS[node % len(SPEEDS)])

    def life(self) -> Life:
        """Return what came of it."""
        log = self.judge.log
        return Life(self.seed, [record.entry for record in log], list(map(_line, log)))

    def check_snapshots(self) -> None:
        """Called once the world has ended."""
        with self._clocks.at(self._clock(0)):
            self.snapshots = check_snapshots(self._factory, self.judge.log, self._rng)


def _line(record: Record) -> str:
    state = "" if record.state is None else digest(record.state)
    return f"{record.entry.index} {record.entry.term} {digest(record.entry.data)} {state} {record.outcome}"


def _drawn_from(commands: Sequence[bytes]) -> Command:
    return lambda rng: rng.choice(commands)
