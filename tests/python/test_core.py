"""aioraft._core.Core over an echo: what its calls take and give, room, contexts, logging, and the garbage collector."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import aioraft
from aioraft._core import Core
from aioraft._status import from_core
from core_help import (
    DEADLINE,
    LOOPS,
    Scripted,
    driver_threads,
    make_core,
    on_every_loop,
    outcome,
    refusal,
    run_on,
    started,
    wait_without_threads,
    waiting_calls,
)


@on_every_loop
async def test_bytes_of_every_kind_are_copied_at_the_call() -> None:
    core = await started()
    for data in (b"abc", bytearray(b"abc"), memoryview(b"abc"), memoryview(b"xaxbxc")[1::2]):
        assert await core.propose(data, DEADLINE) == b"abc"
    changed = bytearray(b"before")
    call = core.propose(changed, DEADLINE)
    changed[:] = b"after!"
    assert await call == b"before"
    assert await core.propose_many([b"1", bytearray(b"2"), memoryview(b"3")], None) == [b"1", b"2", b"3"]
    assert await core.propose_many((item for item in (b"4", b"5")), None) == [b"4", b"5"]
    assert await core.propose_many([], None) == []
    await core.close(0)


@on_every_loop
async def test_a_refused_call_proposes_nothing() -> None:
    core = await started()
    text: Any = "text"

    def broken() -> Any:
        yield b"1"
        raise LookupError

    for call, kind in (
        (lambda: core.propose(text, None), TypeError),
        (lambda: core.propose_many([b"1", text], None), TypeError),
        (lambda: core.propose_many(7, None), TypeError),  # type: ignore[arg-type]
        (lambda: core.propose_many(broken(), None), LookupError),
        (lambda: core.propose(bytes(9 << 20), None), aioraft.ProposalTooLargeError),
        (lambda: core.propose_many([b"1", bytes(9 << 20)], None), aioraft.ProposalTooLargeError),
        (lambda: core.propose(b"", float("nan")), ValueError),
        (lambda: core.read_barrier(float("nan")), ValueError),
        (lambda: core.close(-1.0), ValueError),
        (lambda: core.close(float("nan")), ValueError),
    ):
        assert type(refusal(call)) is kind
    assert core.status()["pending_proposals"] == 0
    assert await core.read_barrier(DEADLINE) == 0
    await core.close(0)


@on_every_loop
async def test_what_is_read_agrees_with_what_was_applied() -> None:
    machine = Scripted()
    core = await started(machine)
    later = core.wait_applied(6)
    await core.propose_many([b"1", b"2", b"3", b"4", b"5", b"6"], None)
    assert await core.read_barrier(DEADLINE) == 6
    assert core.applied == 6
    entries, through = await core.read_applied(2, 1 << 20)
    assert ([entry.index for entry in entries], through) == ([3, 4, 5, 6], 6)
    assert all(entry.timestamp_ns > 0 and entry.wall_time is not None for entry in entries)
    assert await core.read_applied(6, 1 << 20) == ([], 6)
    first, through = await core.read_applied(0, 1)
    assert ([entry.index for entry in first], through) == ([1], 1)
    assert not later.done()
    await core.propose(b"7", None)
    await later
    assert core.wait_applied(6).done()
    status = from_core(core.status())
    assert (status.id, status.role, status.leader, status.python_applied) == (1, "leader", 1, 7)
    version, *leadership = core.leadership
    assert leadership == [1, 1, 1]
    assert core.wait_leadership(version - 1).done()
    assert machine.seen == list(range(1, 8))
    await core.close(0)


@on_every_loop
async def test_tasks_that_propose_together_are_all_answered() -> None:
    core = await started()

    async def client(number: int) -> None:
        for turn in range(20):
            data = f"{number} {turn}".encode()
            assert await core.propose(data, DEADLINE) == data

    await asyncio.gather(*[client(number) for number in range(300)])
    assert core.applied == 6000
    await core.close(0)


@on_every_loop
async def test_a_task_keeps_its_context() -> None:
    mine: contextvars.ContextVar[object] = contextvars.ContextVar("mine", default=None)

    def script(_: aioraft.Entry) -> None:
        mine.set("apply's")

    core = await started(Scripted(script))

    async def client(number: int) -> None:
        mine.set(number)
        await core.propose(b"x", None)
        assert mine.get() == number
        await core.propose_many([b"x"], None)
        assert mine.get() == number
        await core.read_barrier(None)
        assert mine.get() == number

    assert mine.get() is None
    await asyncio.gather(*[client(number) for number in range(20)])
    assert mine.get() is None
    await core.close(0)


@on_every_loop
async def test_apply_has_one_copy_of_the_context_of_the_start() -> None:
    mine: contextvars.ContextVar[str] = contextvars.ContextVar("mine")

    def script(entry: aioraft.Entry) -> str:
        before = mine.get()
        mine.set(entry.data.decode())
        return before

    core = make_core(Scripted(script))
    mine.set("at the start")
    await core.start()
    mine.set("after the start")
    assert await core.propose(b"first", None) == "at the start"
    assert await core.propose_many([b"x"] * 9999 + [b"last"], None) == ["first", *["x"] * 9999]  # in many slices
    assert mine.get() == "after the start"

    async def elsewhere() -> None:
        mine.set("the proposer's")
        assert await core.propose(b"again", None) == "last"

    await asyncio.create_task(elsewhere())
    await core.close(0)


@on_every_loop
async def test_a_callback_has_the_context_it_was_added_in() -> None:
    mine: contextvars.ContextVar[int] = contextvars.ContextVar("mine", default=0)
    seen: list[int] = []
    core = await started()
    call = core.propose(b"x", None)
    for number in (1, 2):
        mine.set(number)
        call.add_done_callback(lambda _: seen.append(mine.get()))
    mine.set(3)
    call.add_done_callback(lambda _: seen.append(mine.get()), context=contextvars.Context())
    await call
    await asyncio.sleep(0)
    assert seen == [1, 2, 0]
    await core.close(0)


@on_every_loop
async def test_other_tasks_run_while_a_backlog_is_applied() -> None:
    since_tick = longest = 0

    def script(_: aioraft.Entry) -> None:
        nonlocal since_tick, longest
        since_tick += 1
        longest = max(longest, since_tick)
        end = time.perf_counter_ns() + 1_000_000  # as an apply that computes for a millisecond
        while time.perf_counter_ns() < end:
            pass

    core = await started(Scripted(script))
    backlog = core.propose_many([b"x"] * 100, None)
    while not backlog.done():
        await asyncio.sleep(0)
        since_tick = 0
    # uvloop may call a reader twice between two turns of a task.
    assert longest <= 8
    assert core.status()["longest_drain_ns"] > 1_000_000
    await core.close(0)


# Where it may be used


def every_use(core: Core) -> dict[str, Callable[[], Any]]:
    return {
        **waiting_calls(core),
        "start": core.start,
        "close": lambda: core.close(0),
        "status": core.status,
        "applied": lambda: core.applied,
        "full": lambda: core.full,
        "leadership": lambda: core.leadership,
        "stopped": lambda: core.stopped,
    }


@on_every_loop
async def test_another_thread_is_refused() -> None:
    core = await started()
    uses = every_use(core)
    raised: dict[str, BaseException] = {}

    def other() -> None:
        raised.update({name: refusal(use) for name, use in uses.items()})

    thread = threading.Thread(target=other)
    thread.start()
    thread.join(DEADLINE)
    assert {name: type(error) for name, error in raised.items()} == dict.fromkeys(uses, aioraft.WrongLoopError)
    assert "run_coroutine_threadsafe" in str(raised["propose"])

    async def propose() -> Any:
        return await core.propose(b"x", DEADLINE)

    loop = asyncio.get_running_loop()
    answered = await asyncio.to_thread(
        lambda: asyncio.run_coroutine_threadsafe(propose(), loop).result(DEADLINE),
    )
    assert answered == b"x"
    await core.close(0)


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize("other_kind", ["asyncio", "uvloop"])
def test_another_loop_is_refused(kind: str, other_kind: str) -> None:
    with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        core = runner.run(started())

        async def elsewhere() -> None:
            for name, call in {**waiting_calls(core), "start": core.start, "close": lambda: core.close(0)}.items():
                error = refusal(call)
                assert type(error) is aioraft.WrongLoopError, name
                assert "another event loop" in str(error)

        run_on(other_kind, elsewhere())
        between = core.propose(b"between two runs of its loop", DEADLINE)

        async def at_home() -> None:
            assert await between == b"between two runs of its loop"
            await core.close(0)

        runner.run(at_home())


@on_every_loop
async def test_before_start_and_after_close() -> None:
    core = make_core()
    for name, call in waiting_calls(core).items():
        error = refusal(call)
        assert type(error) is aioraft.NodeClosedError, name
        assert "start" in str(error)
    assert (core.applied, core.full, core.stopped) == (0, False, None)
    address = await core.start()
    assert address.startswith("127.0.0.1:")
    assert type(refusal(core.start)) is aioraft.RaftError
    await core.close(0)
    for name, call in {**waiting_calls(core), "start": core.start}.items():
        error = refusal(call)
        assert isinstance(error, aioraft.NodeClosedError), name
        assert error.outcome is aioraft.Outcome.NOT_COMMITTED
    assert isinstance(core.stopped, aioraft.NodeClosedError)
    assert core.leadership[2:] == (None, None)
    status = from_core(core.status())
    assert (status.role, status.term, status.leader) == ("closed", 1, None)
    await core.close(0)

    never = make_core()
    assert never.status()["role"] == "forming"
    await never.close(1)
    assert never.status()["role"] == "closed"
    assert type(refusal(never.start)) is aioraft.NodeClosedError


@on_every_loop
async def test_an_address_that_is_taken_fails_the_start() -> None:
    first = make_core()
    address = await first.start()
    second = make_core(listen=address)
    error = await outcome(second.start())
    assert type(error) is aioraft.FatalError
    assert "cannot be bound" in str(error)
    assert type(refusal(lambda: second.propose(b"x", None))) is aioraft.FatalError
    await second.close(0)
    await first.close(0)


# Room


@on_every_loop
async def test_room_is_given_in_the_order_of_asking() -> None:
    core = await started(config=aioraft.Config(max_pending_proposals=2))
    assert not core.full
    assert core.wait_room().done()
    pending = [core.propose(b"x", None), core.propose(b"x", None)]
    assert core.full
    order: list[int] = []
    waits = [core.wait_room() for _ in range(7)]
    for number, wait in enumerate(waits):
        wait.add_done_callback(lambda done, number=number: done.cancelled() or order.append(number))
    waits[0].cancel()
    waits[1].cancel()
    waits[4].cancel()
    await asyncio.gather(*pending)
    await asyncio.gather(*waits, return_exceptions=True)
    assert order == [2, 3, 5, 6]
    assert not core.full
    await core.close(0)


@on_every_loop
async def test_room_is_counted_in_bytes_too() -> None:
    core = await started(config=aioraft.Config(max_pending_bytes=4096, max_entry_bytes=4096))
    many = core.propose_many([bytes(1024)] * 3, None)
    assert not core.full
    last = core.propose(bytes(1024), None)
    assert core.full
    await core.wait_room()
    await asyncio.gather(many, last)
    assert not core.full
    await core.close(0)


@on_every_loop
async def test_those_who_wait_for_room_never_exceed_it() -> None:
    core = await started(config=aioraft.Config(max_pending_proposals=5))
    most = 0

    async def client() -> None:
        nonlocal most
        for _ in range(5):
            while core.full:
                await core.wait_room()
            call = core.propose(b"x", None)
            most = max(most, core.status()["pending_proposals"])
            await call

    await asyncio.gather(*[client() for _ in range(200)])
    assert most == 5
    assert core.applied == 1000
    await core.close(0)


@on_every_loop
async def test_more_than_may_wait_for_apply_goes_through_all_the_same() -> None:
    core = await started(config=aioraft.Config(max_unapplied_bytes=2048, entry_cache_bytes=0))
    calls = [core.propose(bytes(100), None) for _ in range(2000)]
    huge = core.propose(bytes(1 << 20), None)  # by itself longer than all that may wait
    assert set(await asyncio.gather(*calls)) == {bytes(100)}
    assert len(await huge) == 1 << 20
    assert core.applied == 2001
    await core.close(0)


# Commits


@on_every_loop
async def test_a_reader_cancelled_at_every_step_loses_nothing() -> None:
    core = await started()

    async def write() -> None:
        for number in range(60):
            await core.propose_many([f"{number} {turn}".encode() for turn in range(5)], None)

    writing = asyncio.create_task(write())
    commits = aioraft.Commits(core, 0)
    read: list[int] = []
    attempt = 0
    while len(read) < 300:
        attempt += 1
        batches = attempt % 3 == 0
        step: asyncio.Future[Any] = asyncio.ensure_future(anext(commits.batches()) if batches else anext(commits))
        for _ in range(attempt % 7):
            await asyncio.sleep(0)
        step.cancel()
        try:
            got = await step
        except asyncio.CancelledError:
            if attempt % 100 == 0:  # so that it ends, however slow the driver is
                read.append((await anext(commits)).index)
            continue
        read += [entry.index for entry in got] if batches else [got.index]
    await writing
    assert read == list(range(1, 301))
    assert commits.position == 300
    await core.close(0)


@on_every_loop
async def test_a_reader_that_stopped_holds_nothing_back_and_goes_on_where_it_can() -> None:
    core = await started(config=aioraft.Config(entry_cache_bytes=1000))
    commits = aioraft.Commits(core, 0)
    await core.propose(b"first", None)
    assert (await anext(commits)).data == b"first"
    await core.propose_many([bytes(100)] * 100, None)
    error = await outcome(anext(commits))
    assert isinstance(error, aioraft.Compacted)
    assert 1 < error.restart < 101
    entry = await anext(aioraft.Commits(core, error.restart))
    assert entry.index == error.restart + 1
    await core.close(0)


@on_every_loop
async def test_a_reader_that_waits_ends_with_the_core() -> None:
    core = await started()
    commits = aioraft.Commits(core, 0)
    waiting = asyncio.ensure_future(anext(commits, "the end"))
    await asyncio.sleep(0)
    assert not waiting.done()
    await core.close(0)
    assert await waiting == "the end"


# Logging


class Records(logging.Handler):
    """Keeps what is logged below `aioraft`, at `level`, until the block ends."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.kept: list[logging.LogRecord] = []
        self._threshold = level

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record)

    def __enter__(self) -> Records:
        logger = logging.getLogger("aioraft")
        logger.addHandler(self)
        logger.setLevel(self._threshold)
        return self

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("aioraft")
        logger.removeHandler(self)
        logger.setLevel(logging.NOTSET)


@on_every_loop
async def test_events_reach_logging_with_their_fields() -> None:
    with Records(logging.INFO) as records:
        core = make_core()
        before = time.time()
        address = await core.start()
        await core.close(0)
    (record,) = (one for one in records.kept if one.name == "aioraft.bridge")
    assert record.levelno == logging.INFO
    assert record.__dict__["aioraft"] == {"node": 1, "address": address, "members": 1}
    assert record.getMessage().endswith(f"address={address} members=1")
    assert before - 1 <= record.created <= time.time() + 1
    assert record.filename.endswith(".rs")


@on_every_loop
async def test_levels_of_logging_are_kept() -> None:
    with Records(logging.WARNING) as records:
        core = await started()
        await core.close(0)
    assert records.kept == []


@on_every_loop
async def test_an_exception_that_nobody_waits_for_is_logged() -> None:
    def script(entry: aioraft.Entry) -> None:
        raise ValueError(entry.data)

    with Records(logging.ERROR) as records:
        core = await started(Scripted(script))
        awaited = core.propose(b"awaited", None)
        left = core.propose(b"left", None)
        left_many = core.propose_many([b"left, too"], None)
        left.cancel()
        left_many.cancel()
        assert isinstance(await outcome(awaited), aioraft.ApplyError)
        await core.read_barrier(None)
        await core.close(0)
    assert [record.name for record in records.kept] == ["aioraft.apply"] * 2
    assert sorted(record.__dict__["aioraft"]["index"] for record in records.kept) == [2, 3]
    raised = [record.exc_info[1] for record in records.kept if record.exc_info is not None]
    assert sorted(str(error) for error in raised) == ["b'left'", "b'left, too'"]


@on_every_loop
async def test_a_handler_may_call_back() -> None:
    seen: list[Any] = []

    class Calls(Records):
        def emit(self, record: logging.LogRecord) -> None:
            if holder:
                seen.append(holder[0].status()["id"])
                late.append(holder[0].propose(b"from the handler", None))

    holder: list[Core] = []
    late: list[asyncio.Future[Any]] = []
    with Calls(logging.INFO):
        core = make_core()
        holder.append(core)
        await core.start()
        await core.propose(b"x", None)
        assert seen == [1]
        assert await late[0] == b"from the handler"
        await core.close(0)


# Memory


class Token:
    """Something to be referred to weakly."""


@on_every_loop
async def test_results_and_causes_are_let_go() -> None:
    tokens: list[weakref.ref[Token]] = []

    def script(entry: aioraft.Entry) -> Token:
        token = Token()
        tokens.append(weakref.ref(token))
        if entry.data == b"raise":
            error = ValueError("no")
            error.token = token  # type: ignore[attr-defined]
            raise error
        return token

    core = await started(Scripted(script))
    await core.propose(b"x", None)
    core.propose(b"x", None).cancel()
    core.propose_many([b"x", b"x"], None).cancel()
    await core.propose_many([b"x", b"raise"], None)
    await outcome(core.propose(b"raise", None))
    await core.read_barrier(None)
    gc.collect()
    assert len(tokens) == 7
    assert [token() for token in tokens] == [None] * 7
    await core.close(0)


@on_every_loop
async def test_a_finalizer_may_call_back() -> None:
    late: list[asyncio.Future[Any]] = []

    class Caller:
        def __del__(self) -> None:
            assert core.status()["id"] == 1
            late.append(core.propose(b"plain", None))

    def script(entry: aioraft.Entry) -> Caller | bytes:
        return Caller() if entry.data == b"caller" else entry.data

    core = await started(Scripted(script))
    core.propose(b"caller", None).cancel()  # nobody takes its result
    core.propose_many([b"caller", b"plain"], None).cancel()
    await core.read_barrier(None)
    while len(late) < 2:
        await core.wait_applied(core.applied)
    assert await asyncio.gather(*late) == [b"plain", b"plain"]
    await core.close(0)


@on_every_loop
async def test_the_collector_may_run_at_any_time() -> None:
    core = await started()
    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        results = await asyncio.gather(*[core.propose_many([b"x"] * 10, None) for _ in range(20)])
        assert results == [[b"x"] * 10] * 20
    finally:
        gc.set_threshold(*thresholds)
    await core.close(0)


@pytest.mark.parametrize("kind", LOOPS)
def test_a_core_with_calls_in_flight_is_collected_with_its_loop(kind: str) -> None:
    class Machine(Scripted):
        core: Core

    async def main() -> weakref.ref[Core]:
        machine = Machine()
        core = await started(machine, members=3)
        machine.core = core  # a cycle

        async def wait(call: Callable[[], asyncio.Future[Any]]) -> None:
            await call()

        tasks = [asyncio.create_task(wait(call)) for call in waiting_calls(core).values()]
        await asyncio.sleep(0)
        assert not all(task.done() for task in tasks)
        return weakref.ref(core)

    with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        core = runner.run(main())
    del runner
    end = time.monotonic() + DEADLINE
    while core() is not None:  # a thread that was just waking the loop may hold it for a moment
        assert time.monotonic() < end
        gc.collect()
    if sys.platform == "linux":
        wait_without_threads()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@on_every_loop
async def test_closing_gives_back_threads_and_descriptors() -> None:
    async def live() -> None:
        core = await started()
        assert any(name.startswith("aioraft-echo") for name in driver_threads())
        await core.propose(b"x", None)
        await core.close(0)
        wait_without_threads()  # no event of the loop is needed for that any more

    await live()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        await live()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
