"""aioraft._core.Core over an echo: every await, however it ends: cancelled, timed out, closed under it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

import pytest

import aioraft
from aioraft._core import Core
from core_help import DEADLINE, Scripted, make_core, on_every_loop, outcome, refusal, started, waiting_calls

Call: TypeAlias = Callable[[], asyncio.Future[Any]]
Interruption: TypeAlias = Callable[[Call], Coroutine[Any, Any, BaseException]]


async def by_cancel(call: Call) -> BaseException:
    async def wait() -> Any:
        return await call()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel("by hand")
    return await outcome(task)


async def by_timeout(call: Call) -> BaseException:
    async def wait() -> Any:
        async with asyncio.timeout(0):
            return await call()

    return await outcome(wait())


async def by_wait_for(call: Call) -> BaseException:
    return await outcome(asyncio.wait_for(call(), 0))


async def by_task_group(call: Call) -> BaseException:
    async def wait() -> Any:
        return await call()

    async def fail() -> None:
        raise LookupError("a sibling")

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            waiting.append(tasks.create_task(wait()))
            tasks.create_task(fail())

    waiting: list[asyncio.Task[Any]] = []
    error = await outcome(asyncio.create_task(group()))
    assert isinstance(error, ExceptionGroup)
    assert [type(one) for one in error.exceptions] == [LookupError]
    return await outcome(waiting[0])


INTERRUPTIONS: dict[Interruption, type[BaseException]] = {
    by_cancel: asyncio.CancelledError,
    by_timeout: TimeoutError,
    by_wait_for: TimeoutError,
    by_task_group: asyncio.CancelledError,
}
CALLS = [
    "start",
    "propose",
    "propose_many",
    "read_barrier",
    "read_applied",
    "wait_applied",
    "wait_leadership",
    "wait_room",
    "close",
]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("interrupt", INTERRUPTIONS, ids=lambda interrupt: interrupt.__name__)
@on_every_loop
async def test_an_interrupted_await_raises_what_it_raises_elsewhere(interrupt: Interruption, name: str) -> None:
    # Without a majority, so that nothing ends by itself; and full, for those who wait for room.
    core = make_core(members=3, config=aioraft.Config(max_pending_proposals=1))
    if name != "start":
        await core.start()
    if name == "wait_room":
        occupant = core.propose(b"x", None)
        assert core.full
    calls: dict[str, Call] = {"start": core.start, "close": lambda: core.close(DEADLINE), **waiting_calls(core)}
    error = await interrupt(calls[name])
    assert type(error) is INTERRUPTIONS[interrupt]
    assert not isinstance(error, aioraft.RaftError)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await core.close(0)
    assert isinstance(core.stopped, aioraft.NodeClosedError)
    if name == "wait_room":
        assert isinstance(await outcome(occupant), aioraft.NodeClosedError)


@pytest.mark.parametrize("interrupt", INTERRUPTIONS, ids=lambda interrupt: interrupt.__name__)
@on_every_loop
async def test_interrupting_stops_the_waiting_and_not_the_proposal(
    interrupt: Interruption,
) -> None:
    machine = Scripted()
    core = await started(machine)
    assert type(await interrupt(lambda: core.propose(b"x", None))) is INTERRUPTIONS[interrupt]
    assert type(await interrupt(lambda: core.propose_many([b"x", b"x"], None))) is INTERRUPTIONS[interrupt]
    assert await core.propose(b"y", None) == b"y"
    while core.applied < 4:
        await core.wait_applied(core.applied)
    assert machine.seen == [1, 2, 3, 4]
    assert core.status()["pending_proposals"] == 0
    await core.close(0)


@on_every_loop
async def test_a_storm_of_cancellations_loses_and_doubles_nothing() -> None:
    applied: list[bytes] = []

    def script(entry: aioraft.Entry) -> bytes:
        applied.append(entry.data)
        return entry.data

    core = await started(Scripted(script))

    async def client(number: int) -> None:
        data = str(number).encode()
        assert await core.propose(data, None) == data

    tasks = [asyncio.create_task(client(number)) for number in range(1000)]
    for turn in range(10):
        await asyncio.sleep(0)
        for task in tasks[turn::20]:
            task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        assert ended is None or type(ended) is asyncio.CancelledError
    await core.read_barrier(None)
    while core.status()["pending_proposals"]:
        await core.wait_applied(core.applied)
    assert sorted(applied) == sorted(str(number).encode() for number in range(1000))
    await core.close(0)


@on_every_loop
async def test_a_timeout_that_has_passed_wins_over_an_answer_that_has_come() -> None:
    core = await started()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(DEADLINE) as timeout:
            call = core.propose(b"x", None)
            call.add_done_callback(lambda _: timeout.reschedule(0))
            await call
            await asyncio.get_running_loop().create_future()
    assert call.result() == b"x"
    await core.close(0)


@on_every_loop
async def test_a_failed_proposal_ends_its_task_group() -> None:
    def script(entry: aioraft.Entry) -> bytes:
        if entry.data == b"raise":
            raise ValueError("no")
        return entry.data

    core = await started(Scripted(script))

    async def wait(call: Call) -> None:
        await call()

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            siblings.append(tasks.create_task(wait(lambda: core.wait_applied(100))))
            tasks.create_task(wait(lambda: core.propose(b"raise", None)))

    siblings: list[asyncio.Task[None]] = []
    error = await outcome(group())
    assert isinstance(error, ExceptionGroup)
    assert [type(one) for one in error.exceptions] == [aioraft.ApplyError]
    assert siblings[0].cancelled()
    assert await core.propose(b"x", None) == b"x"
    await core.close(0)


# Deadlines


@pytest.mark.parametrize("timeout", [0.0, -1.0, -float("inf")])
@on_every_loop
async def test_a_call_without_any_time_is_refused_at_once(timeout: float) -> None:
    core = await started(members=3)
    for call in (lambda: core.propose(b"x", timeout), lambda: core.propose_many([b"x"], timeout)):
        refused = refusal(call)
        assert type(refused) is aioraft.ProposalTimeoutError
        assert refused.outcome is aioraft.Outcome.NOT_COMMITTED
        assert "no time was left" in str(refused)
    assert type(refusal(lambda: core.read_barrier(timeout))) is aioraft.ReadTimeoutError
    assert core.status()["pending_proposals"] == 0
    await core.close(0)
    assert type(refusal(lambda: core.propose(b"x", timeout))) is aioraft.NodeClosedError


@pytest.mark.parametrize("timeout", [0.02, 1e-9])
@on_every_loop
async def test_a_deadline_passes(timeout: float) -> None:
    core = await started(members=3)
    begun = time.monotonic()
    calls = core.propose(b"x", timeout), core.propose(b"x", timeout), core.read_barrier(timeout)
    many = core.propose_many([b"x", b"y"], timeout)
    await asyncio.wait([*calls, many])
    assert time.monotonic() - begun >= timeout
    kinds = [type(call.exception()) for call in calls]
    assert kinds == [aioraft.ProposalTimeoutError, aioraft.ProposalTimeoutError, aioraft.ReadTimeoutError]
    assert [type(error) for error in many.result()] == [aioraft.ProposalTimeoutError] * 2
    assert all(isinstance(call.exception(), TimeoutError) for call in calls)
    failed = calls[0].exception()
    assert isinstance(failed, aioraft.RaftError)
    assert failed.outcome is aioraft.Outcome.NOT_COMMITTED
    assert core.status()["pending_proposals"] == 0
    await core.close(0)


@on_every_loop
async def test_deadlines_pass_in_their_own_order() -> None:
    core = await started(members=3)
    order: list[str] = []

    async def wait(name: str, timeout: float | None) -> None:
        await outcome(core.propose(b"x", timeout))
        order.append(name)

    timeouts = {"never": None, "beyond all bounds": float("inf"), "later": 0.06, "sooner": 0.03}
    tasks = [asyncio.create_task(wait(name, timeout)) for name, timeout in timeouts.items()]
    late = await outcome(core.propose(b"x", 0.09))
    assert isinstance(late, aioraft.ProposalTimeoutError)
    assert order == ["sooner", "later"]
    assert core.status()["pending_proposals"] == 2
    await core.close(0)
    await asyncio.gather(*tasks)
    assert sorted(order[2:]) == ["beyond all bounds", "never"]


@on_every_loop
async def test_the_nearer_of_two_deadlines_counts() -> None:
    core = await started(members=3)
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.01):
            await core.propose(b"x", DEADLINE)
    assert type(caught.value) is TimeoutError
    with pytest.raises(aioraft.ProposalTimeoutError):
        async with asyncio.timeout(DEADLINE):
            await core.propose(b"x", 0.01)
    await core.close(0)


# Closing under calls


def calls_in_flight(core: Core) -> dict[str, asyncio.Future[Any]]:
    return {name: call() for name, call in waiting_calls(core).items()}


@on_every_loop
async def test_closing_ends_every_call() -> None:
    core = await started(members=3, config=aioraft.Config(max_pending_proposals=1))
    calls = calls_in_flight(core)
    first = core.close(3600)
    second = core.close(0)  # the shorter one takes over
    third = core.close(3600)
    await asyncio.gather(first, second, third)
    del calls["read_applied"]  # may have been answered
    for name, call in calls.items():
        assert call.done(), name
        if name == "propose_many":
            errors = call.result()
        elif name == "wait_leadership" and call.exception() is None:
            continue
        else:
            errors = [call.exception()]
        assert {type(error) for error in errors} == {aioraft.NodeClosedError}, name
    for error in (calls["propose"].exception(), *calls["propose_many"].result()):
        assert error.outcome is aioraft.Outcome.NOT_COMMITTED


@on_every_loop
async def test_calls_made_while_closing_are_refused() -> None:
    core = await started(members=3)
    waiting = core.propose(b"x", None)
    closing = core.close(3600)
    with pytest.raises(aioraft.NodeClosedError):
        await core.propose(b"y", None)
    assert not waiting.done()
    await core.close(0)
    await closing
    assert isinstance(waiting.exception(), aioraft.NodeClosedError)


@on_every_loop
async def test_closing_lets_what_is_under_way_end() -> None:
    machine = Scripted()
    core = await started(machine)
    calls = [core.propose(b"x", None) for _ in range(500)]
    many = core.propose_many([b"y"] * 500, None)
    await core.close(DEADLINE)
    assert [call.result() for call in calls] == [b"x"] * 500
    assert many.result() == [b"y"] * 500
    assert len(machine.seen) == 1000


@on_every_loop
async def test_nothing_is_applied_once_it_is_closed() -> None:
    machine = Scripted()
    core = await started(machine)
    calls = [core.propose(b"x", None) for _ in range(20_000)]
    await core.close(0)
    seen = len(machine.seen)
    answered = sum(call.exception() is None for call in calls)
    assert answered == seen
    for call in calls:
        error = call.exception()
        assert error is None or isinstance(error, aioraft.NodeClosedError)
    await asyncio.sleep(0)
    assert len(machine.seen) == seen


@on_every_loop
async def test_a_start_that_is_closed_at_once_ends() -> None:
    core = make_core()
    starting = core.start()
    await core.close(0)
    assert starting.done()
    error = starting.exception()
    assert error is None or type(error) is aioraft.NodeClosedError


@on_every_loop
async def test_a_cancelled_close_closes_all_the_same() -> None:
    core = await started(members=3)
    waiting = core.propose(b"x", None)
    core.close(0).cancel()
    assert isinstance(await outcome(waiting), aioraft.NodeClosedError)
    await core.close(0)
