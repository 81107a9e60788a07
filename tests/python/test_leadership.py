"""aioraft.Leadership and Term: the newest wins, and a term's body ends with it."""

from __future__ import annotations

import asyncio

import pytest

import aioraft
from aioraft.testing import Cluster
from machines import Adder
from stub_core import StubCore, settle

pytestmark = pytest.mark.asyncio


async def test_leadership_is_latched() -> None:
    core = StubCore()
    changes = aioraft.LeadershipChanges(core.as_core())
    assert await anext(changes) == aioraft.Leadership(0, None)
    core.lead(1, 1, leading=False)
    core.lead(2, 3, leading=False)
    assert await anext(changes) == aioraft.Leadership(2, 3)
    core.lead(2, 3, leading=True)  # caught up: no change of leader
    waiting = asyncio.create_task(anext(changes))
    await settle()
    assert not waiting.done()
    waiting.cancel()
    core.lead(3, None, leading=False)
    assert await anext(changes) == aioraft.Leadership(3, None)


async def test_iterations_end_with_the_node() -> None:
    core = StubCore()
    core.end(aioraft.NodeClosedError("closed", False))
    assert [one async for one in aioraft.LeadershipChanges(core.as_core())] == [aioraft.Leadership(0, None)]
    assert [one async for one in aioraft.Leading(core.as_core())] == []
    core.end(aioraft.FatalError("the disk failed"))
    with pytest.raises(aioraft.FatalError):
        await anext(aioraft.Leading(core.as_core()))


async def test_a_body_runs_once_a_term_and_ends_with_it() -> None:
    core = StubCore()
    events: list[str] = []

    async def loop() -> None:
        async for term in aioraft.Leading(core.as_core()):
            async with term:
                events.append(f"begin {term.number}")
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    events.append(f"end {term.number} {term.ended}")
            events.append("after")

    task = asyncio.create_task(loop())
    await settle()
    assert events == []
    core.lead(1, 1, leading=True)
    await settle()
    assert events == ["begin 1"]
    core.lead(2, 2, leading=False)
    await settle()
    assert events == ["begin 1", "end 1 True", "after"]
    assert task.cancelling() == 0
    core.lead(3, 1, leading=True)
    await settle()
    core.end(aioraft.NodeClosedError("closed", False))
    await task
    assert events[3:] == ["begin 3", "end 3 True", "after"]


async def test_a_cancellation_from_elsewhere_passes_through() -> None:
    core = StubCore()
    core.lead(1, 1, leading=True)
    entered = asyncio.Event()

    async def body() -> None:
        async with await anext(aioraft.Leading(core.as_core())):
            entered.set()
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(body())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    entered.clear()
    task = asyncio.create_task(body())  # both at once: the other one wins
    await entered.wait()
    await settle()
    core.lead(2, 2, leading=False)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_the_body_raises_passes_through() -> None:
    core = StubCore()
    core.lead(1, 1, leading=True)
    with pytest.raises(KeyError):
        async with await anext(aioraft.Leading(core.as_core())):
            raise KeyError
    with pytest.raises(KeyError):
        async with await anext(aioraft.Leading(core.as_core())):
            try:
                core.lead(2, 2, leading=False)
                await asyncio.get_running_loop().create_future()
            finally:
                raise KeyError
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_body_that_ends_first_is_left_alone() -> None:
    core = StubCore()
    core.lead(1, 1, leading=True)
    async with await anext(aioraft.Leading(core.as_core())) as term:
        await settle()
    assert not term.ended
    core.lead(2, 2, leading=False)
    await settle()
    assert term.ended
    with pytest.raises(RuntimeError, match="entered once"):
        await term.__aenter__()


async def test_a_term_that_has_ended_before_its_body_begins() -> None:
    core = StubCore()
    core.lead(1, 1, leading=True)
    term = await anext(aioraft.Leading(core.as_core()))
    core.lead(2, 2, leading=False)
    reached = False
    async with term:
        await asyncio.get_running_loop().create_future()
        reached = True
    assert not reached


async def test_a_timeout_inside_a_term_is_a_timeout() -> None:
    core = StubCore()
    core.lead(1, 1, leading=True)
    async with await anext(aioraft.Leading(core.as_core())):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.get_running_loop().create_future()
        await settle()


async def test_leadership_of_a_cluster() -> None:
    async with Cluster(3, Adder) as cluster:
        leader = await cluster.leader()
        known = [await node.wait_for_leader(timeout=10) for node in cluster.nodes]
        assert {one.leader for one in known} == {leader.id}
        term = await anext(leader.leading())
        followers = [node for node in cluster.nodes if node is not leader]
        async with asyncio.timeout(10), term:
            await leader.aclose()
            await asyncio.get_running_loop().create_future()
        assert term.ended
        changes = followers[0].leadership()
        async with asyncio.timeout(10):
            async for newest in changes:
                if newest.leader not in (None, leader.id):
                    assert newest.term > term.number
                    break
