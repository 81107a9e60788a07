"""aioraft._core.Core over an echo: what `apply` and `apply_batch` may do, and what becomes of the node."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import aioraft
from aioraft._core import Core
from core_help import (
    DEADLINE,
    LOOPS,
    Scripted,
    ScriptedBatch,
    on_every_loop,
    outcome,
    refusal,
    started,
    waiting_calls,
)


class Unprintable(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Foreign(BaseException):
    pass


def recurse(depth: int) -> int:
    return recurse(depth + 1) + 1


RESULTS: list[BaseException] = [
    ValueError("no"),
    KeyError("k"),
    StopIteration(3),
    StopAsyncIteration(),
    asyncio.InvalidStateError(),
    ExceptionGroup("several", [ValueError("a")]),
    ExceptionGroup("several deep", [ValueError("a"), ExceptionGroup("deeper", [LookupError("b"), TypeError("c")])]),
    Unprintable(),
    aioraft.FatalError("made up"),
    aioraft.ApplyError("made up", 99),
]
FATAL: list[BaseException] = [
    OSError("disk"),
    ConnectionResetError("peer"),
    TimeoutError("builtin, and so an OSError"),
    MemoryError(),
    RecursionError("deep"),
    asyncio.CancelledError(),
    GeneratorExit(),
    Foreign("base"),
    ExceptionGroup("a disk among them", [ValueError("a"), OSError("disk")]),
    ExceptionGroup("deep", [ValueError("a"), ExceptionGroup("deeper", [ExceptionGroup("deepest", [MemoryError()])])]),
    ExceptionGroup("deep", [ExceptionGroup("deeper", [RecursionError("deep")])]),
    BaseExceptionGroup("cancelled among them", [ValueError("a"), asyncio.CancelledError()]),
]


def name(error: BaseException) -> str:
    return type(error).__name__


def nested(error: Exception, depth: int) -> Exception:
    for _ in range(depth):
        error = ExceptionGroup("", [error])
    return error


def raises(error: BaseException) -> Callable[[aioraft.Entry], bytes]:
    """A script that raises for `b"raise"`."""

    def script(entry: aioraft.Entry) -> bytes:
        if entry.data == b"raise":
            raise error
        return entry.data

    return script


@pytest.mark.parametrize("error", RESULTS, ids=name)
@on_every_loop
async def test_an_exception_is_a_result(error: BaseException) -> None:
    machine = Scripted(raises(error))
    core = await started(machine)
    raised = await outcome(core.propose(b"raise", None))
    assert isinstance(raised, aioraft.ApplyError)
    assert raised.__cause__ is error
    assert (raised.index, raised.outcome) == (1, aioraft.Outcome.APPLIED)
    assert name(error) in str(raised)
    first, second = await core.propose_many([b"raise", b"x"], None)
    assert isinstance(first, aioraft.ApplyError)
    assert (first.__cause__, first.index, second) == (error, 2, b"x")
    assert await core.propose(b"y", None) == b"y"
    assert machine.seen == [1, 2, 3, 4]
    assert (core.applied, core.stopped) == (4, None)
    await core.close(0)


@pytest.mark.parametrize("error", FATAL, ids=name)
@on_every_loop
async def test_what_differs_between_replicas_stops_the_node(error: BaseException) -> None:
    machine = Scripted(raises(error))
    core = await started(machine)
    assert await core.propose(b"before", None) == b"before"
    calls = core.propose(b"raise", None), core.propose(b"after", None)  # the first of them leaves at once
    many = core.propose_many([b"after", b"after"], None)
    waits = core.wait_applied(100), core.wait_leadership(core.leadership[0]), core.read_barrier(None)
    await asyncio.wait([*calls, *waits])
    failed = [call.exception() for call in (*calls, *waits)] + await many
    for raised in failed:
        assert type(raised) is aioraft.FatalError
        assert raised.__cause__ is error
        assert name(error) in str(raised)
    unknown = aioraft.Outcome.UNKNOWN  # of what was proposed
    assert [raised.outcome for raised in failed] == [unknown, unknown, None, None, None, unknown, unknown]
    assert len(set(map(id, failed))) == len(failed)  # a traceback of its own for each
    assert machine.seen == [1, 2]
    assert core.applied == 1
    assert type(core.stopped) is aioraft.FatalError
    assert core.stopped.__cause__ is error
    assert (core.status()["role"], core.status()["leader"], core.leadership[2:]) == ("stopped", None, (None, None))
    for call in waiting_calls(core).values():
        refused = refusal(call)
        assert type(refused) is aioraft.FatalError
        assert refused.outcome is aioraft.Outcome.NOT_COMMITTED
        assert refused.__cause__ is error
    await core.close(DEADLINE)
    assert type(refusal(lambda: core.propose(b"x", None))) is aioraft.FatalError
    assert machine.seen == [1, 2]


@on_every_loop
async def test_recursion_without_end_stops_the_node() -> None:
    core = await started(Scripted(lambda _: recurse(0)))
    raised = await outcome(core.propose(b"x", None))
    assert type(raised) is aioraft.FatalError
    assert type(raised.__cause__) is RecursionError
    await core.close(0)


@on_every_loop
async def test_a_group_is_looked_into_at_any_depth() -> None:
    errors = [nested(error, 20_000) for error in (ValueError("no"), OSError("disk"))]

    def script(entry: aioraft.Entry) -> None:
        raise errors[int(entry.data)]

    core = await started(Scripted(script))
    # Only the types: nothing can print so deep a group.
    kinds = [type(await outcome(core.propose(number, None))) for number in (b"0", b"1")]
    assert kinds == [aioraft.ApplyError, aioraft.FatalError]
    await core.close(0)
    while errors:  # CPython takes so deep a group apart only from outside
        inner = errors.pop()
        while isinstance(inner, ExceptionGroup):
            (inner,) = inner.exceptions


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize("error", [KeyboardInterrupt("Ctrl-C"), SystemExit(7)], ids=name)
def test_what_ends_the_program_is_passed_on(error: BaseException, kind: str) -> None:
    cores: list[Core] = []
    calls: list[asyncio.Future[Any]] = []

    async def main() -> None:
        core = await started(Scripted(raises(error)))
        cores.append(core)
        calls.append(core.propose(b"raise", None))
        await calls[0]

    async def close() -> None:
        await cores[0].close(0)

    with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        raised = refusal(lambda: runner.run(main()))
        assert type(raised) is type(error)
        try:
            runner.run(close())
        except RuntimeError:  # uvloop has kept a stop from the interrupted run, also without a core
            assert kind == "uvloop"
            runner.run(close())
    fatal = calls[0].exception()
    assert type(fatal) is aioraft.FatalError
    assert fatal.__cause__ is error


@on_every_loop
async def test_calls_from_inside_are_refused() -> None:
    refused: dict[str, BaseException] = {}

    def script(entry: aioraft.Entry) -> Any:
        if entry.data == b"let out":
            return core.propose(b"x", None)
        refused.update({name: refusal(call) for name, call in waiting_calls(core).items()})
        return core.applied, core.status()["python_applied"]

    core = await started(Scripted(script))
    assert await core.propose(b"x", None) == (0, 0)
    assert {name: type(error) for name, error in refused.items()} == dict.fromkeys(
        waiting_calls(core), aioraft.ReentrantCallError
    )
    raised = await outcome(core.propose(b"let out", None))
    assert isinstance(raised, aioraft.ApplyError)
    assert isinstance(raised.__cause__, aioraft.ReentrantCallError)
    await core.propose(b"x", None)  # from a task it works as before
    await core.close(0)


@on_every_loop
async def test_closing_from_inside() -> None:
    closing: list[asyncio.Future[None]] = []

    def script(entry: aioraft.Entry) -> bytes:
        if entry.index == 2:
            closing.append(core.close(0))
        return entry.data

    machine = Scripted(script)
    core = await started(machine)
    calls = [core.propose(b"x", None) for _ in range(1000)]
    await asyncio.wait(calls)
    await closing[0]
    assert machine.seen == [1, 2]  # the one that closed is the last
    assert [call.result() for call in calls[:2]] == [b"x"] * 2
    assert {type(call.exception()) for call in calls[2:]} == {aioraft.NodeClosedError}
    assert core.applied == 2


@on_every_loop
async def test_other_tasks_run_between_two_slow_entries() -> None:
    longest = since_tick = 0

    def script(_: aioraft.Entry) -> None:
        nonlocal longest, since_tick
        since_tick += 1
        longest = max(longest, since_tick)
        time.sleep(0.01)

    core = await started(Scripted(script))
    backlog = core.propose_many([b"x"] * 50, None)
    while not backlog.done():
        await asyncio.sleep(0)
        since_tick = 0
    assert longest <= 2  # uvloop may call a reader twice between two turns of a task
    await core.close(0)


@on_every_loop
async def test_a_huge_result_is_handed_over_as_it_is() -> None:
    huge = bytearray(256 << 20)
    many = [object() for _ in range(1_000_000)]

    def script(entry: aioraft.Entry) -> object:
        return huge if entry.data == b"huge" else many

    core = await started(Scripted(script))
    assert await core.propose(b"huge", None) is huge
    results = await core.propose_many([b"huge", b"many"], None)
    assert results[0] is huge
    assert results[1] is many
    await core.close(0)


@on_every_loop
async def test_any_other_object_may_be_a_result() -> None:
    loop = asyncio.get_running_loop()
    odd: list[object] = [None, ValueError("returned, not raised"), (x for x in "x"), NotImplemented, Waitable, loop]
    core = await started(Scripted(lambda entry: odd[int(entry.data)]))
    for position, thing in enumerate(odd):
        assert await core.propose(str(position).encode(), None) is thing
    await core.close(0)


class Waitable:
    def __await__(self) -> Any:
        yield


async def work() -> None:
    raise AssertionError("it ran")


def task() -> asyncio.Task[None]:
    async def nothing() -> None: ...

    return asyncio.get_running_loop().create_task(nothing())


AWAITABLES: dict[str, Callable[[], object]] = {
    "coroutine": work,
    "Future": lambda: asyncio.get_running_loop().create_future(),
    "Task": task,
    "Waitable": Waitable,
}


@pytest.mark.parametrize("kind", AWAITABLES)
@on_every_loop
async def test_an_awaitable_is_no_result(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as "never awaited", which would come as an unraisable exception
        core = await started(Scripted(lambda entry: AWAITABLES[kind]() if entry.data == b"a" else entry.data))
        raised = await outcome(core.propose(b"a", None))
        assert isinstance(raised, aioraft.ApplyError)
        assert isinstance(raised.__cause__, TypeError)
        assert f"awaitable ({kind})" in str(raised.__cause__)
        assert "make it plain" in str(raised.__cause__)
        assert await core.propose(b"b", None) == b"b"
        await core.close(0)

        core = await started(ScriptedBatch(lambda entries: [AWAITABLES[kind](), *[1] * (len(entries) - 1)]))
        first, second = await core.propose_many([b"a", b"b"], None)
        assert isinstance(first, aioraft.ApplyError)
        assert isinstance(first.__cause__, TypeError)
        assert (second, core.applied) == (1, 2)
        await core.close(0)


@on_every_loop
async def test_an_awaitable_in_place_of_a_batch_stops_the_node() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        core = await started(ScriptedBatch(lambda _: work()))
        raised = await outcome(core.propose(b"x", None))
        assert type(raised) is aioraft.FatalError
        assert "apply_batch returned an awaitable (coroutine)" in str(raised)
        await core.close(0)


# Batches


@on_every_loop
async def test_a_batch_has_a_result_or_an_exception_for_each() -> None:
    def answer(entries: Sequence[aioraft.Entry]) -> list[object]:
        assert type(entries) is list
        return [ValueError(entry.index) if entry.index % 2 else entry.index for entry in entries]

    machine = ScriptedBatch(answer)
    core = await started(machine)
    results = await core.propose_many([b"x"] * 1000, None)
    for index, result in enumerate(results, start=1):
        if index % 2:
            assert isinstance(result, aioraft.ApplyError)
            assert (result.index, repr(result.__cause__)) == (index, f"ValueError({index})")
        else:
            assert result == index
    assert max(machine.sizes) <= 256
    assert machine.seen == list(range(1, 1001))
    await core.close(0)


@on_every_loop
async def test_a_batch_may_be_answered_by_any_iterable() -> None:
    core = await started(ScriptedBatch(lambda entries: (entry.data for entry in entries)))
    assert await core.propose_many([b"1", b"2"], None) == [b"1", b"2"]
    await core.close(0)


def broken_off(entries: Sequence[aioraft.Entry]) -> Any:
    yield entries[0].data
    raise ValueError("broken off")


def raise_value_error(_: Sequence[aioraft.Entry]) -> Any:
    raise ValueError("the whole batch")


@pytest.mark.parametrize(
    ("answer", "said", "cause"),
    [
        pytest.param(lambda _: [], "returned 0 results for 3", None, id="none"),
        pytest.param(lambda entries: [1] * (len(entries) - 1), "returned 2 results for 3", None, id="too few"),
        pytest.param(lambda entries: [1] * (len(entries) + 1), "returned 4 results for 3", None, id="too many"),
        pytest.param(lambda _: None, "TypeError", TypeError, id="nothing"),
        pytest.param(lambda _: 5, "TypeError", TypeError, id="a number"),
        pytest.param(broken_off, "broken off", ValueError, id="broken off"),
        pytest.param(raise_value_error, "the whole batch", ValueError, id="raised"),
        pytest.param(lambda _: [1, OSError("disk"), 3], "disk", OSError, id="an OSError among them"),
        pytest.param(lambda _: [1, 2, Foreign("base")], "base", Foreign, id="a BaseException among them"),
    ],
)
@on_every_loop
async def test_a_batch_of_which_it_is_unknown_what_counts_stops_the_node(
    answer: Callable[[Sequence[aioraft.Entry]], Any], said: str, cause: type[BaseException] | None
) -> None:
    core = await started(ScriptedBatch(answer))
    results = await core.propose_many([b"1", b"2", b"3"], None)
    for raised in results:
        assert type(raised) is aioraft.FatalError
        assert said in str(raised)
        assert "this node has stopped" in str(raised)
        assert cause is None or type(raised.__cause__) is cause
    assert core.applied == 0
    assert type(core.stopped) is aioraft.FatalError
    await core.close(0)


@on_every_loop
async def test_calls_from_inside_a_batch_are_refused() -> None:
    refused: list[BaseException] = []

    def answer(entries: Sequence[aioraft.Entry]) -> list[bytes]:
        refused.extend(refusal(call) for call in waiting_calls(core).values())
        return [entry.data for entry in entries]

    core = await started(ScriptedBatch(answer))
    assert await core.propose(b"x", None) == b"x"
    assert {type(error) for error in refused} == {aioraft.ReentrantCallError}
    await core.close(0)
