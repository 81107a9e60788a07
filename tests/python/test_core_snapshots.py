"""aioraft._core.Core over an echo: what `snapshot` may return and raise, and what `restore` gets and may do."""

from __future__ import annotations

import array
import asyncio
import contextlib
import contextvars
import logging
import pathlib
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import aioraft
from aioraft._commits import Commits
from aioraft._core import Core
from core_help import (
    DEADLINE,
    LOOPS,
    Scripted,
    Snapshotting,
    driver_threads,
    make_core,
    on_every_loop,
    outcome,
    refusal,
    started,
    wait_without_threads,
)

MIB = 1 << 20
VALUE = bytes(range(256)) * 40_000  # 10 MB: more than waits at once


class Held(bytes):
    """A subclass, which may do anything."""


def generator(*chunks: Any) -> Iterator[Any]:
    yield from chunks


FORMS: dict[str, tuple[Callable[[], Any], Any]] = {
    "bytes": (lambda: b"state", b"state"),
    "no bytes": (lambda: b"", b""),
    "long bytes": (lambda: VALUE, VALUE),
    "a subclass": (lambda: Held(b"state"), b"state"),
    "bytearray": (lambda: bytearray(b"state"), b"state"),
    "memoryview": (lambda: memoryview(b"state"), b"state"),
    "every second byte": (lambda: memoryview(b"s-t-a-t-e")[::2], b"state"),
    "generator": (
        lambda: generator(b"one", b"", bytearray(b"two"), memoryview(b"three")),
        [b"one", b"", b"two", b"three"],
    ),
    "list": (lambda: [b"one", b"two"], [b"one", b"two"]),
    "nothing": (list, []),
    "many small chunks": (lambda: [b"x"] * 50_000, [b"x"] * 50_000),
    "long chunks": (lambda: generator(*[VALUE] * 3), [VALUE] * 3),
    "thread, bytes": (lambda: lambda: VALUE, VALUE),
    "thread, bytearray": (lambda: lambda: bytearray(b"state"), b"state"),
    "thread, chunks": (lambda: lambda: generator(b"one", b"", b"two"), [b"one", b"", b"two"]),
    "thread, long chunks": (lambda: lambda: [VALUE] * 3, [VALUE] * 3),
    "thread, many small chunks": (lambda: lambda: [b"x"] * 50_000, [b"x"] * 50_000),
    "thread, nothing": (lambda: list, []),
}


@pytest.mark.parametrize("form", FORMS)
@on_every_loop
async def test_what_is_returned_is_restored(form: str, tmp_path: pathlib.Path) -> None:
    make, restored = FORMS[form]
    core = await started(Snapshotting(make), data_dir=tmp_path)
    await core.propose_many([b"x"] * 3, None)
    assert await core.snapshot(None) == 3
    await core.close(0)
    machine = Snapshotting()
    core = await started(machine, data_dir=tmp_path)
    assert machine.restored == [restored]
    assert core.applied == 3
    await core.propose(b"x", None)
    assert machine.seen == [4]
    await core.close(0)


@on_every_loop
async def test_it_is_the_state_between_two_entries() -> None:
    """Also of a generator, which begins at once, and whatever is proposed meanwhile."""
    captured: list[list[int]] = []

    def state() -> Iterator[bytes]:
        captured.append(list(machine.seen))
        yield b"first"
        yield b"second"

    machine = Snapshotting(state)
    core = await started(machine)
    for round_ in range(1, 20):
        before = [core.propose(b"x", None) for _ in range(round_)]
        snapshot = core.snapshot(None)
        after = [core.propose(b"x", None) for _ in range(round_)]
        index = await snapshot
        assert captured.pop() == list(range(1, index + 1))
        await asyncio.gather(*before, *after)
    await core.close(0)


@on_every_loop
async def test_those_who_ask_meanwhile_get_the_same() -> None:
    asked = 0
    gate = threading.Event()

    def serialise() -> bytes:
        assert gate.wait(DEADLINE)
        return b"state"

    def make() -> Callable[[], bytes]:
        nonlocal asked
        asked += 1
        return serialise

    core = await started(Snapshotting(make))
    await core.propose(b"x", None)
    waiting = [core.snapshot(None) for _ in range(3)]
    assert await core.propose(b"x", None) == b"x"
    waiting.append(core.snapshot(None))
    left, timed_out = core.snapshot(None), core.snapshot(0.01)
    left.cancel()
    assert type(await outcome(timed_out)) is aioraft.SnapshotTimeoutError
    gate.set()
    assert len(set(await asyncio.gather(*waiting))) == 1
    assert asked == 1
    assert await core.snapshot(None) == 2
    await core.close(0)


RAISED: list[BaseException] = [
    ValueError("no"),
    OSError("disk"),
    MemoryError(),
    RecursionError("deep"),
    StopIteration(3),
    asyncio.CancelledError(),
    GeneratorExit(),
    ExceptionGroup("several", [OSError("disk")]),
    aioraft.FatalError("made up"),
]


def raises(error: BaseException) -> Any:
    raise error


def breaks_off(error: BaseException, chunks: int) -> Iterator[bytes]:
    yield from [b"x"] * chunks
    if isinstance(error, StopIteration):
        raise ValueError("a generator cannot raise StopIteration")
    raise error


PLACES: dict[str, Callable[[BaseException], Any]] = {
    "at once": raises,
    "at the first chunk": lambda error: breaks_off(error, 0),
    "later": lambda error: breaks_off(error, 10),
    "thread": lambda error: lambda: raises(error),
    "thread, later": lambda error: lambda: breaks_off(error, 10),
}


@pytest.mark.parametrize("place", PLACES)
@on_every_loop
async def test_what_it_raises_fails_the_snapshot_and_not_the_node(place: str, caplog: pytest.LogCaptureFixture) -> None:
    errors = iter(RAISED)
    machine = Snapshotting(lambda: PLACES[place](next(errors)))
    core = await started(machine)
    for index, error in enumerate(RAISED, start=1):
        await core.propose(b"x", None)
        raised = await outcome(core.snapshot(None))
        assert type(raised) is aioraft.SnapshotError
        assert f"the snapshot of index {index} failed, and the node goes on: snapshot() raised " in str(raised)
        (record,) = [record for record in caplog.records if record.name == "aioraft.snapshot"]
        assert (record.levelno, record.__dict__["aioraft"]) == (logging.ERROR, {"index": index})
        assert record.exc_info is not None
        if not isinstance(error, StopIteration) or place in ("at once", "thread"):
            assert record.exc_info[1] is error
        caplog.clear()
    machine.make = lambda: b"well again"
    assert await core.snapshot(None) == len(RAISED)
    assert core.stopped is None
    await core.close(0)


async def never() -> bytes:
    raise AssertionError("it ran")


async def never_either() -> Any:
    yield b"x"


WRONG: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "str": lambda: "text",
    "number": lambda: 5,
    "dict": lambda: {b"key": b"value"},
    "coroutine": never,
    "async generator": never_either,
    "a chunk of text": lambda: ["text"],
    "a chunk that is None": lambda: generator(b"x", None),
    "array": lambda: array.array("i", [1, 2]),
    "open to all": lambda: range(3),
}


@pytest.mark.parametrize("wrapped", [False, True], ids=["", "in a thread"])
@pytest.mark.parametrize("kind", WRONG)
@on_every_loop
async def test_a_wrong_type_is_said_clearly(kind: str, wrapped: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as "never awaited"
        core = await started(Snapshotting((lambda: WRONG[kind]) if wrapped else WRONG[kind]))
        raised = await outcome(core.snapshot(None))
        assert type(raised) is aioraft.SnapshotError
        assert "TypeError" in str(raised)
        assert "must be bytes" in str(raised) or "make it plain, not async" in str(raised)
        await core.close(0)


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize("place", ["at once", "at the first chunk", "later"])
@pytest.mark.parametrize("error", [KeyboardInterrupt("Ctrl-C"), SystemExit(7)], ids=lambda error: type(error).__name__)
def test_what_ends_the_program_is_passed_on(error: BaseException, place: str, kind: str) -> None:
    cores: list[Core] = []

    async def main() -> None:
        cores.append(await started(Snapshotting(lambda: PLACES[place](error))))
        await cores[0].snapshot(None)

    async def close() -> None:
        assert cores[0].stopped is None
        assert await cores[0].propose(b"x", None) == b"x"
        await cores[0].close(0)

    with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        assert refusal(lambda: runner.run(main())) is error
        with contextlib.suppress(RuntimeError):  # uvloop keeps a stop from the interrupted run, also without a core
            runner.run(asyncio.sleep(0.001))
        runner.run(close())


@on_every_loop
async def test_a_disk_that_takes_no_more_fails_the_snapshot_and_not_the_node(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "echo.snapshot.new"
    file.symlink_to("/dev/full")
    closed: list[str] = []

    def endless() -> Iterator[bytes]:
        try:
            while True:
                yield bytes(MIB)
        finally:
            closed.append(threading.current_thread().name)

    forms: list[Callable[[], Any]] = [lambda: VALUE, endless, lambda: endless, lambda: lambda: VALUE]
    for form in forms:
        core = await started(Snapshotting(form), data_dir=tmp_path)
        raised = await outcome(core.snapshot(None))
        assert type(raised) is aioraft.SnapshotError
        assert f"cannot write {file} (No space left on device" in str(raised)
        assert "start the node again" not in str(raised)
        assert await core.propose(b"x", None) == b"x"
        await core.close(0)
        assert [r.levelname for r in caplog.records if "No space left" in r.getMessage()] == ["ERROR"]
        assert [record for record in caplog.records if record.name == "aioraft.snapshot"] == []
        caplog.clear()
    end = time.monotonic() + DEADLINE
    while len(closed) < 2:  # the thread is told when it looks
        assert time.monotonic() < end
        await asyncio.sleep(0.001)
    assert closed == ["MainThread", "aioraft-serialise"]


@on_every_loop
async def test_other_tasks_run_between_two_slow_chunks() -> None:
    longest = since_tick = 0

    def slow() -> Iterator[bytes]:
        nonlocal longest, since_tick
        for _ in range(30):
            since_tick += 1
            longest = max(longest, since_tick)
            time.sleep(0.005)
            yield b"x"

    core = await started(Snapshotting(slow))
    snapshot = core.snapshot(None)
    while not snapshot.done():
        await asyncio.sleep(0)
        since_tick = 0
    assert longest <= 2  # uvloop may call several callbacks between two turns of a task
    await core.close(0)


def test_a_thread_that_serialises_lets_the_loop_have_its_turns(tmp_path: pathlib.Path) -> None:
    """However long the interpreter lets a thread keep the GIL."""
    chunks = 500

    def serialise() -> Iterator[bytes]:
        for _ in range(chunks):
            until = time.perf_counter() + 0.001
            while time.perf_counter() < until:
                pass
            yield b"x"

    async def take() -> int:
        core = await started(Snapshotting(lambda: serialise), data_dir=tmp_path)
        await core.propose(b"x", DEADLINE)
        turns = 0
        snapshot = core.snapshot(None)
        while not snapshot.done():
            await asyncio.sleep(0)
            turns += 1
        await core.close(0)
        return turns

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1.0)
    try:
        turns = asyncio.run(take())
    finally:
        sys.setswitchinterval(interval)
    assert turns > chunks / 5


@pytest.mark.parametrize("form", [lambda value: value, lambda value: [value] * 3, lambda value: lambda: [value] * 3])
@on_every_loop
async def test_what_was_returned_is_let_go(form: Callable[[bytes], Any]) -> None:
    value = bytes(MIB)
    before = sys.getrefcount(value)
    core = await started(Snapshotting(lambda: form(value)))
    for _ in range(3):
        await core.snapshot(None)
    await core.close(0)
    wait_without_threads()
    end = time.monotonic() + DEADLINE
    while sys.getrefcount(value) > before:  # the thread that serialises may still be on its way out
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


@on_every_loop
async def test_context_variables_are_those_of_apply() -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    def chunks() -> Iterator[bytes]:
        seen.append(variable.get())
        variable.set("by the generator")
        yield b"x"
        time.sleep(0.002)
        yield b"x"
        seen.append(variable.get())

    variable.set("at the start")
    core = await started(Snapshotting(chunks))
    variable.set("later")
    await core.snapshot(None)
    machine = Snapshotting(lambda: lambda: variable.get().encode())
    other = await started(machine)
    await other.snapshot(None)
    assert seen == ["at the start", "by the generator"]
    assert variable.get() == "later"
    await core.close(0)
    await other.close(0)


@on_every_loop
async def test_calls_from_inside_are_refused() -> None:
    def make() -> bytes:
        return repr(type(refusal(lambda: core.snapshot(None)))).encode()

    core = await started(Snapshotting(make))
    assert await core.snapshot(None) == 0
    await core.close(0)


@on_every_loop
async def test_without_the_method_it_is_refused() -> None:
    core = await started(Scripted())
    error = refusal(lambda: core.snapshot(None))
    assert type(error) is aioraft.SnapshotError
    assert "override snapshot() and restore()" in str(error)
    await core.close(0)


# Ends


def pull_for_ever() -> Iterator[bytes]:
    while True:
        yield bytes(64 * 1024)


def serialise_for_ever() -> Iterator[bytes]:
    return pull_for_ever()


@pytest.mark.parametrize("form", [pull_for_ever, lambda: serialise_for_ever], ids=["loop", "thread"])
@on_every_loop
async def test_closing_ends_it(form: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> None:
    core = await started(Snapshotting(form))
    snapshot = core.snapshot(None)
    await core.propose_many([b"x"] * 10, None)
    before = time.monotonic()
    await core.close(0)
    assert time.monotonic() - before < DEADLINE / 3
    raised = await outcome(snapshot)
    assert type(raised) is aioraft.NodeClosedError
    wait_without_threads()
    names = {thread.name for thread in threading.enumerate()}
    end = time.monotonic() + DEADLINE
    while "aioraft-serialise" in names:
        assert time.monotonic() < end
        await asyncio.sleep(0.001)
        names = {thread.name for thread in threading.enumerate()}
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert driver_threads() == []


@on_every_loop
async def test_the_last_seconds_are_enough_for_a_short_one() -> None:
    core = await started(Snapshotting(lambda: lambda: b"state"))
    snapshot = core.snapshot(None)
    await core.close(DEADLINE)
    assert await snapshot == 0


# Restoring


async def taken(folder: pathlib.Path, make: Callable[[], Any], entries: int = 3) -> None:
    """Leave a snapshot of `entries` entries there."""
    core = await started(Snapshotting(make), data_dir=folder)
    await core.propose_many([b"x"] * entries, None)
    assert await core.snapshot(None) == entries
    await core.close(0)


class Restoring(Snapshotting):
    def __init__(self, script: Callable[[Any], None]) -> None:
        super().__init__()
        self.restoring = script

    def restore(self, data: Any) -> None:
        self.restoring(data)


@pytest.mark.parametrize(
    "error", [*RAISED, Exception("any"), NotImplementedError("none")], ids=lambda e: type(e).__name__
)
@on_every_loop
async def test_what_restore_raises_stops_the_node(error: BaseException, tmp_path: pathlib.Path) -> None:
    await taken(tmp_path, lambda: [b"one"])
    core = await started(Restoring(lambda _: raises(error)), data_dir=tmp_path, members=3)
    stopped = core.stopped
    while stopped is None:
        await asyncio.sleep(0)
        stopped = core.stopped
    assert type(stopped) is aioraft.FatalError
    assert stopped.__cause__ is error
    assert f"restore raised {type(error).__name__}" in str(stopped)
    assert "index 3" in str(stopped)
    assert core.applied == 0
    await core.close(0)


@pytest.mark.parametrize("kind", LOOPS)
def test_ctrl_c_in_restore_is_passed_on(kind: str, tmp_path: pathlib.Path) -> None:
    error = KeyboardInterrupt("Ctrl-C")

    async def main() -> None:
        await taken(tmp_path, lambda: b"state")
        core = await started(Restoring(lambda _: raises(error)), data_dir=tmp_path)
        await core.propose(b"x", None)

    with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        assert refusal(lambda: runner.run(main())) is error


@pytest.mark.parametrize("swallowed", [False, True])
@pytest.mark.parametrize("form", ["bytes", "chunks"])
@on_every_loop
async def test_damage_stops_the_node_whatever_restore_makes_of_it(
    form: str, swallowed: bool, tmp_path: pathlib.Path
) -> None:
    await taken(tmp_path, (lambda: VALUE) if form == "bytes" else lambda: [b"one", VALUE])
    file = tmp_path / "echo.snapshot"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    seen: list[Any] = []

    def script(chunks: Any) -> None:
        try:
            seen.extend(chunks)
        except aioraft.FatalError:
            seen.append("damaged")
            if not swallowed:
                raise

    core = await started(Restoring(script), data_dir=tmp_path, members=3)
    stopped = core.stopped
    while stopped is None:
        await asyncio.sleep(0)
        stopped = core.stopped
    assert f"the snapshot of index 3 cannot be restored, so this node has stopped: {file} is damaged" in str(stopped)
    assert seen == ([b"one", "damaged"] if form == "chunks" else [])
    await core.close(0)


@on_every_loop
async def test_chunks_end_with_restore(tmp_path: pathlib.Path) -> None:
    await taken(tmp_path, lambda: [b"one", b"two"])
    kept: list[Iterator[bytes]] = []
    first: list[bytes] = []

    def script(chunks: Iterator[bytes]) -> None:
        kept.append(chunks)
        first.append(next(chunks))

    core = await started(Restoring(script), data_dir=tmp_path)
    assert first == [b"one"]
    with pytest.raises(ValueError, match="restore has returned"):
        next(kept[0])
    assert core.stopped is None
    await core.close(0)


@on_every_loop
async def test_everybody_notices_that_the_cursor_has_jumped(tmp_path: pathlib.Path) -> None:
    await taken(tmp_path, lambda: b"state", entries=5)
    core = make_core(Snapshotting(), data_dir=tmp_path)
    starting = core.start()
    reader = Commits(core, 0)
    reading = asyncio.ensure_future(anext(reader))
    waits: list[asyncio.Future[Any]] = [core.wait_applied(0), core.wait_applied(4), core.read_barrier(None)]
    await asyncio.wait([starting, *waits])
    assert waits[2].result() == 5
    error = await outcome(reading)
    assert isinstance(error, aioraft.Compacted)
    assert error.restart == 5
    reader = Commits(core, error.restart)
    await core.propose(b"x", None)
    entry = await anext(reader)
    assert (entry.index, entry.data) == (6, b"x")
    await core.close(0)


@on_every_loop
async def test_the_log_keeps_a_trail(tmp_path: pathlib.Path) -> None:
    core = await started(Snapshotting(), config=aioraft.Config(snapshot_trail=4))
    await core.propose_many([b"x"] * 10, None)
    assert await core.snapshot(None) == 10
    entry = await anext(Commits(core, 6))
    assert entry.index == 7
    error = await outcome(anext(Commits(core, 5)))
    assert isinstance(error, aioraft.Compacted)
    assert error.restart == 6
    await core.close(0)


# Durable state machines


class Durable(Snapshotting):
    def __init__(self, applied: tuple[int, int] | None) -> None:
        super().__init__()
        self.applied = applied

    def durable_applied(self) -> tuple[int, int] | None:
        return self.applied


@on_every_loop
async def test_a_durable_state_goes_on_where_it_is(tmp_path: pathlib.Path) -> None:
    await taken(tmp_path, lambda: b"state", entries=3)
    ahead = Durable((7, 1))
    core = await started(ahead, data_dir=tmp_path)
    assert (core.applied, await core.read_barrier(None)) == (7, 7)
    await core.propose(b"x", None)
    assert (ahead.restored, ahead.seen) == ([], [8])
    await core.close(0)
    behind = Durable((2, 1))
    core = await started(behind, data_dir=tmp_path)
    assert (core.applied, behind.restored) == (3, [b"state"])
    await core.close(0)
