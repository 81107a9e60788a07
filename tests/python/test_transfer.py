"""Leadership changes hands: when it is asked for, and when whoever holds it closes."""

from __future__ import annotations

import asyncio
import pathlib
import sys

import pytest

import aioraft
from aioraft.testing.plugin import RaftCluster
from machines import Adder
from processes import HERE, Process, Processes, make_random, three_of_kind

pytestmark = pytest.mark.asyncio

IN_FLIGHT = 64
LONGEST_PAUSE_S = 0.2


# With the defaults an election takes a second at least: only a hand-over keeps the pauses short.
DEFAULTS = {field: getattr(aioraft.Config(), field) for field in ("election_timeout", "heartbeat_interval")}


class SteadyProcesses(Processes):
    """Replicas under a steady load."""

    program = HERE / "steady_node.py"


# Asked for


async def test_leadership_goes_to_the_node_that_is_named(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(3, Adder) as cluster:
        for _ in range(3):
            leader = await cluster.leader()
            term = leader.status().term
            to = leader.id % 3 + 1
            assert await leader.transfer_leader(to) == to
            assert (await leader.wait_for_leader()).term > term
            assert (await cluster.leader()).id == to
        await leader.propose(b"5")
        await cluster.wait_agreement()


async def test_without_a_name_it_goes_to_another_node(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(3, Adder) as cluster:
        leader = await cluster.leader()
        assert await leader.transfer_leader() in {1, 2, 3} - {leader.id}


async def test_a_call_that_cannot_succeed_says_what_to_do(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(3, Adder) as cluster:
        leader = await cluster.leader()
        other = next(node for node in cluster.nodes if node is not leader)
        await other.ready()
        with pytest.raises(aioraft.TransferError, match=f"ask node {leader.id}, which does"):
            await other.transfer_leader()
        with pytest.raises(aioraft.TransferError, match=r"node 9 is no voting member: name one of \[1, 2, 3\]"):
            await leader.transfer_leader(9)
        with pytest.raises(aioraft.ConfigError, match="to = 'one'"):
            await leader.transfer_leader("one")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        with pytest.raises(aioraft.TransferTimeoutError, match="timeout = 0"):
            await leader.transfer_leader(timeout=0)
        assert await leader.transfer_leader(leader.id) == leader.id
    async with raft_cluster(1, Adder) as cluster:
        with pytest.raises(aioraft.TransferError, match="the only voting member"):
            await (await cluster.leader()).transfer_leader()
    with pytest.raises(aioraft.NodeClosedError):
        await leader.transfer_leader()


async def test_a_target_that_hangs_costs_an_error_and_the_leader_leads_on(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(3, Adder) as cluster:
        leader = await cluster.leader()
        to = leader.id % 3 + 1
        await leader.propose(b"5")
        await cluster.wait_agreement()
        cluster.isolate(to)  # its connections stay up
        with pytest.raises(aioraft.TransferError) as refused:
            await leader.transfer_leader(to)
        # Which of both depends on whether a heartbeat was answered before.
        assert "did not take over" in str(refused.value) or "the deadline passed" in str(refused.value)
        assert await leader.propose(b"2") == 7
        cluster.heal()
        await cluster.wait_agreement()


async def test_cancelling_stops_the_waiting_and_not_the_transfer(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(3, Adder) as cluster:
        leader = await cluster.leader()
        to = leader.id % 3 + 1
        call = asyncio.create_task(leader.transfer_leader(to))
        await asyncio.sleep(0)  # it has begun
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async for newest in leader.leadership():
            if newest.leader == to:
                break


# Closed


async def test_a_leader_that_closes_hands_over_first(raft_cluster: RaftCluster) -> None:
    config = aioraft.Config(close_timeout=30.0, election_timeout=60.0)  # so that nobody is elected otherwise
    async with raft_cluster(3, Adder, config=config) as cluster:
        leader = await cluster.leader()
        others = [node for node in cluster.nodes if node is not leader]
        await leader.propose(b"5")
        calls = [asyncio.create_task(leader.propose(b"1")) for _ in range(100)]
        await asyncio.sleep(0)  # they have begun
        await leader.aclose()
        assert sorted([await call for call in calls]) == list(range(6, 106))
        assert (await others[0].wait_for_leader(timeout=0)).leader in {node.id for node in others}
        assert await others[1].propose(b"1") == 106


async def test_a_leader_that_nobody_can_replace_closes_all_the_same(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(3, Adder, config=aioraft.Config(close_timeout=1.0)) as cluster:
        leader = await cluster.leader()
        cluster.isolate(leader.id)
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        await leader.aclose()
        assert loop.time() - began_at < 10.0
        cluster.heal()


async def test_a_rolling_restart_holds_nobody_up(tmp_path: pathlib.Path) -> None:
    seed = make_random().randrange(10**9)
    async with three_of_kind(SteadyProcesses, tmp_path, seed, **DEFAULTS) as processes:
        await processes.ask(processes.all, "load", in_flight=IN_FLIGHT)
        await processes.more(processes.all, 1000)
        for one in [await processes.leader(), *processes.all]:  # the leader twice, or one that is it by then
            pause_s, stall_s = await restarted(processes, one)
            sys.stdout.write(
                f"node {one.number}: no answer for {1e3 * pause_s:.0f} ms, stalls of {1e3 * stall_s:.0f} ms\n"
            )
            # A stall can come to the leader, to the follower whose answer it needs, and to whoever proposed.
            assert pause_s < LONGEST_PAUSE_S + 3 * stall_s
        await processes.stop_load()  # a proposal that failed on one of the others would be seen here
        await processes.assert_counted_once()


async def restarted(processes: Processes, one: Process) -> tuple[float, float]:
    """Close a node and start it again. Return the longest pause that the two others noticed until it had caught up, and the
    longest stall that they owe to their machine."""
    others = [process for process in processes.all if process is not one]
    await processes.ask(others, "pauses")
    incarnation = one.incarnation
    proposed = await one.close()
    assert {f"{incarnation}.{number}" for number in range(proposed)} <= processes.fates.keys()
    await processes.more(others, 1000)
    await processes.start()
    await processes.more(others, 1000)
    seen = await processes.ask(others, "pauses")
    assert all(node["answers"] > 0 for node in seen)
    await one.ask("load", in_flight=IN_FLIGHT)
    return max(node["pause_s"] for node in seen), max(node["stall_s"] for node in seen)
