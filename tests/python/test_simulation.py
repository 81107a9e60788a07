"""aioraft.testing.Simulation: what it finds in a state machine, and what it leaves alone."""

from __future__ import annotations

import _thread
import dataclasses
import datetime
import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC
from datetime import datetime as imported_by_name
from time import time as time_by_name
from typing import Any

import pytest

import aioraft
from aioraft.testing import Simulation, SimulationError, SimulationReport
from aioraft.testing._shaking import shake
from machines import Adder, BatchAdder

NUMBERS = [b"1", b"20", b"300"]


def changes(rng: random.Random) -> bytes:
    return json.dumps([rng.choice(["bolt", "nut", "screw", "washer"]), rng.randrange(-9, 10)]).encode()


class Stock(aioraft.StateMachine[Any]):
    """Deterministic, and as it should be; what is wrong with others is what they override."""

    def __init__(self) -> None:
        self.items: dict[str, int] = {}

    def apply(self, entry: aioraft.Entry) -> Any:
        sku, delta = json.loads(entry.data)
        left = self.items.get(sku, 0) + delta
        if left < 0:
            raise ValueError(f"no {sku} left")
        self.items[sku] = left
        if not left:
            del self.items[sku]
        return left

    def snapshot(self) -> Any:
        return json.dumps(self.items, sort_keys=True).encode()

    def restore(self, data: Any) -> None:
        self.items = json.loads(data)


def run(
    factory: Callable[[], aioraft.StateMachine[Any]], *, seed: int = 1, n: int = 3, seconds: float = 60
) -> SimulationReport:
    return Simulation(seed, n, factory, command=changes).run(seconds=seconds)


def failure(factory: Callable[[], aioraft.StateMachine[Any]], *, seed: int = 1) -> SimulationError:
    for other in range(seed, seed + 10):  # what one world does not show, another does
        try:
            run(factory, seed=other, seconds=180)
        except SimulationError as error:
            return error
    raise AssertionError(f"nothing was found with the seeds {seed} to {seed + 9}")


# What is right passes


@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_a_deterministic_machine_passes_in_clusters_of_any_size(n: int) -> None:
    report = run(Stock, n=n, seconds=61)
    assert report.lives == 2
    assert report.seconds == 120
    assert report.entries > 100 * report.lives
    assert report.applied > 1.5 * report.entries  # by most nodes, and by some again
    assert report.starts >= 2 * n
    assert report.leaders >= 2
    assert report.snapshots is not None
    assert report.snapshots >= 4
    assert report.stops == 0
    assert f"{report.entries} entries" in str(report)


def test_the_seed_decides_everything() -> None:
    reports = [dataclasses.replace(run(Stock, seed=seed), took=0) for seed in (5, 5, 6)]
    assert reports[0] == reports[1]
    assert reports[0].digest != reports[2].digest


def test_faults_of_many_kinds_come_with_time() -> None:
    report = Simulation(3, 3, Adder, command=NUMBERS).run(seconds=600)
    assert report.crashes > 10
    assert report.partitions > 10
    assert len(report.faults) >= 8
    assert report.starts > 30 + report.crashes // 2


def test_a_machine_without_a_snapshot_is_simulated_without_that_check() -> None:
    report = Simulation(1, 3, Adder, command=NUMBERS).run()
    assert report.snapshots is None
    assert "no snapshot() to check" in str(report)


def test_a_machine_that_takes_batches_gets_batches() -> None:
    sizes: list[int] = []

    class Batches(BatchAdder):
        def apply_batch(self, entries: Sequence[aioraft.Entry]) -> list[int | Exception]:
            sizes.append(len(entries))
            return super().apply_batch(entries)

    Simulation(1, 3, Batches, command=[*NUMBERS, b"fail"]).run(seconds=180)
    assert max(sizes) > 1


def test_an_exception_is_a_result() -> None:
    report = Simulation(1, 3, Adder, command=[b"1", b"fail", b"no number"]).run()
    assert report.stops == 0


@dataclasses.dataclass
class Pair:
    left: list[int]
    right: set[str]


def test_results_are_equal_by_what_they_hold() -> None:
    class Opaque:
        def __init__(self, value: object) -> None:
            self.value = value

    class Results(Adder):
        def apply(self, entry: aioraft.Entry) -> Any:
            total = super().apply(entry)
            words = {str(number) for number in range(total % 7)}
            return [Pair([total], words), Opaque({"held": words}), iter, dict.fromkeys(words), float("nan")]

    assert Simulation(1, 3, Results, command=NUMBERS).run().entries > 100


def test_snapshots_may_come_in_chunks_or_from_a_callable() -> None:
    class Chunks(Stock):
        def snapshot(self) -> Iterator[bytes]:
            return iter([json.dumps(item).encode() for item in sorted(self.items.items())])

        def restore(self, data: Iterator[bytes]) -> None:
            self.items = dict(json.loads(chunk) for chunk in data)

    class Deferred(Chunks):
        def snapshot(self) -> Any:
            items = sorted(self.items.items())
            return lambda: (json.dumps(item).encode() for item in items)

    for kind in (Chunks, Deferred):
        assert (run(kind).snapshots or 0) > 1


def test_a_machine_with_an_equality_of_its_own_is_compared_by_it() -> None:
    class Pickled(Stock):
        """Its bytes tell how it got where it is; equal machines behave equally all the same."""

        def __init__(self) -> None:
            super().__init__()
            self.restored = False

        def restore(self, data: Any) -> None:
            super().restore(json.loads(data)["items"])
            self.restored = True

        def snapshot(self) -> bytes:
            return json.dumps({"items": super().snapshot().decode(), "restored": self.restored}).encode()

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Pickled) and self.items == other.items

        __hash__ = None  # type: ignore[assignment]

    assert (run(Pickled).snapshots or 0) > 1


# What is wrong is found


class LocalClock(Stock):
    def apply(self, entry: aioraft.Entry) -> Any:
        return super().apply(entry), int(time.time() / 3600)


class LocalClockByName(Stock):
    def apply(self, entry: aioraft.Entry) -> Any:
        return super().apply(entry), int(time_by_name() / 3600)


class Today(Stock):
    def apply(self, entry: aioraft.Entry) -> Any:
        return super().apply(entry), datetime.date.today().isoformat()


class Year(Stock):
    def apply(self, entry: aioraft.Entry) -> Any:
        return super().apply(entry), datetime.datetime.now(UTC).year


class YearByName(Stock):
    def apply(self, entry: aioraft.Entry) -> Any:
        return super().apply(entry), imported_by_name.now(UTC).year


class Weekday(Stock):
    def apply(self, entry: aioraft.Entry) -> Any:
        return super().apply(entry), time.strftime("%A")


class Uptime(Stock):
    def apply(self, entry: aioraft.Entry) -> Any:
        return super().apply(entry), int(time.monotonic() / 3600)


class Lease(Stock):
    """Nothing of the clock shows but whether a minute has passed, or an hour."""

    def __init__(self) -> None:
        super().__init__()
        self.until = [0.0, 0.0]

    def apply(self, entry: aioraft.Entry) -> Any:
        super().apply(entry)
        now = time.monotonic()
        granted = [now >= until for until in self.until]
        spans = (60, 3600)
        self.until = [now + span if won else until for won, until, span in zip(granted, self.until, spans, strict=True)]
        return granted


class Random(Stock):
    def apply(self, entry: aioraft.Entry) -> Any:
        return super().apply(entry), random.random() < 0.1


class SetInState(Stock):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def apply(self, entry: aioraft.Entry) -> Any:
        self.seen.add(json.loads(entry.data)[0])
        return super().apply(entry), next(iter(self.seen))


class SetOfNumbers(Stock):
    """The hashes of numbers are the same everywhere, and yet the order is not."""

    def __init__(self) -> None:
        super().__init__()
        self.held = {"deep": [set[int]()]}

    def apply(self, entry: aioraft.Entry) -> Any:
        self.held["deep"][0].add(entry.index % 100)
        return super().apply(entry), list(self.held["deep"][0])


class Identity(Stock):
    def apply(self, entry: aioraft.Entry) -> Any:
        return super().apply(entry), id(self)


class Shared(Stock):
    """One counter for all replicas of a process."""

    count = 0

    def apply(self, entry: aioraft.Entry) -> Any:
        Shared.count += 1
        return super().apply(entry), Shared.count


class Raises(Stock):
    def apply(self, entry: aioraft.Entry) -> Any:
        if random.random() < 0.1:
            raise LookupError(entry.index)
        return super().apply(entry)


@pytest.mark.parametrize(
    "machine",
    [
        *[LocalClock, LocalClockByName, Today, Year, YearByName, Weekday, Uptime, Lease, Random],
        *[SetInState, SetOfNumbers, Identity, Shared, Raises],
    ],
    ids=lambda machine: machine.__name__,
)
def test_results_that_depend_on_the_replica_are_found(machine: type[Stock]) -> None:
    error = failure(machine)
    assert error.check == "apply is deterministic"
    assert error.entry is not None
    assert f"Entry(index={error.entry.index}, " in str(error)
    assert f"seed {error.seed}" in str(error)
    assert "on node " in str(error)


def test_a_state_that_depends_on_the_replica_is_found_by_its_snapshot() -> None:
    class Stamped(Stock):
        def apply(self, entry: aioraft.Entry) -> None:
            self.items[json.loads(entry.data)[0]] = int(time.time())

    error = failure(Stamped)
    assert error.check == "replicas agree on the state"
    assert error.entry is not None


def test_a_failure_comes_again_with_its_seed_in_one_life() -> None:
    class Rare(Stock):
        def apply(self, entry: aioraft.Entry) -> Any:
            return super().apply(entry), random.random() < 0.0005

    first = failure(Rare, seed=11)
    with pytest.raises(SimulationError) as again:
        run(Rare, seed=first.seed)
    assert (again.value.check, again.value.entry, str(again.value)) == (first.check, first.entry, str(first))
    assert f"Simulation({first.seed}, 3, ...).run()" in str(first)
    assert any("term" in line for line in first.transcript)


def test_randomness_outside_goes_on_as_if_there_had_been_no_simulation() -> None:
    random.seed(5)
    expected = random.random()
    random.seed(5)
    run(Stock)
    assert random.random() == expected


def test_clocks_are_the_real_ones_again_afterwards() -> None:
    functions = (time.time, time.monotonic, time_by_name, imported_by_name, datetime.datetime)
    failure(LocalClock)
    assert (time.time, time.monotonic, time_by_name, imported_by_name, datetime.datetime) == functions
    assert abs(time.time() - imported_by_name.now().timestamp()) < 60


def test_another_thread_keeps_its_clock_meanwhile() -> None:
    seen: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(time.time())

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.time()
    try:
        with pytest.raises(SimulationError):
            run(LocalClock)
        run(Stock)
    finally:
        done.set()
        thread.join()
    assert all(began - 60 < one < time.time() + 60 for one in seen)


# Snapshots


def test_a_snapshot_that_observes_later_entries_is_found() -> None:
    class Lazy(Stock):
        def snapshot(self) -> Any:
            return lambda: json.dumps(self.items, sort_keys=True).encode()

    class LazyChunks(Stock):
        def snapshot(self) -> Any:
            return (f"{sku} {self.items.get(sku, 0)} ".encode() for sku in sorted(self.items))

        def restore(self, data: Any) -> None:
            words = b"".join(data).decode().split()
            self.items = dict(zip(words[::2], map(int, words[1::2]), strict=True))

    class Live(Stock):
        def __init__(self) -> None:
            super().__init__()
            self.bytes = bytearray()

        def apply(self, entry: aioraft.Entry) -> Any:
            self.bytes += entry.data
            return None

        def snapshot(self) -> Any:
            return memoryview(self.bytes.copy()) if not self.bytes else self.bytes

        def restore(self, data: Any) -> None:
            self.bytes = bytearray(data)

    class Iterates(Stock):
        def snapshot(self) -> Any:
            return (json.dumps(item).encode() for item in self.items.items())

        def restore(self, data: Any) -> None:
            self.items = dict(json.loads(chunk) for chunk in data)

    for kind in (Lazy, LazyChunks, Live, Iterates):
        error = failure(kind)
        assert (kind, error.check) == (kind, "a snapshot does not observe later entries")
        assert error.entry is not None


def test_a_restore_that_does_not_bring_everything_back_is_found() -> None:
    class Forgets(Stock):
        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def apply(self, entry: aioraft.Entry) -> Any:
            self.count += 1
            return self.count

    class Merges(Stock):
        def restore(self, data: Any) -> None:
            self.items.update(json.loads(data))

    class Fails(Stock):
        def restore(self, data: Any) -> None:
            raise KeyError("items")

    class Never(Stock):
        restore = aioraft.StateMachine.restore

    class OtherBytes(Stock):
        def snapshot(self) -> bytes:
            return repr([*self.items.items(), id(self)]).encode()

    expected = {
        Forgets: "apply is deterministic",  # the results that follow are other ones
        Merges: "restore brings back what snapshot took",
        Fails: "restore brings back what snapshot took",
        OtherBytes: "replicas agree on the state",
    }
    for kind, check in expected.items():
        error = failure(kind)
        assert (kind, error.check) == (kind, check), str(error)
    assert "restored from a snapshot" in str(failure(Forgets))
    assert "KeyError('items')" in str(failure(Fails))
    with pytest.raises(aioraft.ConfigError, match="no restore"):
        failure(Never)


def test_a_snapshot_that_is_no_bytes_is_told() -> None:
    class Text(Stock):
        def snapshot(self) -> Any:
            return super().snapshot().decode()

    assert "it must be bytes" in str(failure(Text))


# What stops a node


def test_what_may_differ_from_replica_to_replica_stops_a_node_which_starts_again() -> None:
    calls = 0

    class FullDisk(Stock):
        def apply(self, entry: aioraft.Entry) -> Any:
            nonlocal calls
            calls += 1
            if calls in (100, 500, 900):
                raise [OSError("disk full"), MemoryError(), RecursionError()][calls // 400]
            return super().apply(entry)

    report = run(FullDisk)
    assert report.stops == 3
    assert report.starts > 3


def test_an_entry_that_stops_its_node_each_time_is_a_failure() -> None:
    class Poisoned(Stock):
        def apply(self, entry: aioraft.Entry) -> Any:
            if entry.index >= 40:
                raise ExceptionGroup("several", [OSError("disk full")])
            return super().apply(entry)

    error = failure(Poisoned)
    assert error.check == "a node that was started again goes on"
    assert error.entry is not None
    assert error.entry.index >= 40
    assert isinstance(error.__cause__, ExceptionGroup)
    assert "and stopped again" in str(error)


def test_entries_that_stop_nodes_now_and_then_for_ever_are_a_failure() -> None:
    class Flaky(Stock):
        def apply(self, entry: aioraft.Entry) -> Any:
            if random.random() < 0.01:
                raise OSError("now and then")
            return super().apply(entry)

    error = failure(Flaky)
    assert error.check == "a node that was started again goes on"
    assert isinstance(error.__cause__, OSError)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_not_meant_for_a_machine_passes_through(kind: type[BaseException]) -> None:
    class Interrupted(Stock):
        def apply(self, entry: aioraft.Entry) -> Any:
            raise kind

    with pytest.raises(kind):
        run(Interrupted)
    run(Stock)  # and leaves nothing behind


def test_ctrl_c_ends_an_hour_within_a_second() -> None:
    interrupted_at = 0.0

    def interrupt() -> None:
        nonlocal interrupted_at
        interrupted_at = time.monotonic()
        _thread.interrupt_main(signal.SIGINT)

    timer = threading.Timer(0.5, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run(Stock, seconds=24 * 3600)
    assert time.monotonic() - interrupted_at < 1
    timer.join()


# What it is given


def test_an_error_of_the_command_or_the_factory_is_raised_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        Simulation(1, 3, Stock, command=lambda rng: b"" * (1 // 0)).run()
    starts = 0

    def factory() -> Stock:
        nonlocal starts
        starts += 1
        if starts > 3:
            raise LookupError("no more of them")
        return Stock()

    with pytest.raises(LookupError):
        run(factory)


def test_what_makes_no_sense_is_refused() -> None:
    machine = Stock()
    with pytest.raises(ValueError, match="2 to 9"):
        Simulation(1, 1, Stock, command=NUMBERS)
    with pytest.raises(ValueError, match="must be one at least"):
        Simulation(1, 3, Stock, command=[])
    with pytest.raises(ValueError, match="between 0 and"):
        Simulation(-1, 3, Stock, command=NUMBERS)
    with pytest.raises(ValueError, match="positive number"):
        Simulation(1, 3, Stock, command=NUMBERS).run(seconds=0)
    with pytest.raises(TypeError, match="a command is bytes"):
        Simulation(1, 3, Stock, command=lambda rng: "text").run()  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="1048577 bytes"):
        Simulation(1, 3, Adder, command=[b"1" * ((1 << 20) + 1)]).run()
    with pytest.raises(aioraft.ConfigError, match="belongs to another node"):
        run(lambda: machine)


def test_shaking_changes_the_order_of_a_set_and_nothing_else() -> None:
    words = {f"word {number}" for number in range(20)}
    kept = {"sets": [words, {1, 2}], "other": (frozenset({3}), "text")}
    orders = set()
    for seed in range(50):
        shake(kept, random.Random(seed))
        assert words == {f"word {number}" for number in range(20)}
        orders.add(tuple(words))
    assert len(orders) > 10
    assert kept == {"sets": [words, {1, 2}], "other": (frozenset({3}), "text")}
