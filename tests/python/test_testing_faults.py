"""aioraft.testing.Cluster: what may go wrong among its nodes, and what they make of it."""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib

import pytest

import aioraft
from aioraft.testing import TEST_CONFIG, Cluster
from core_help import DEADLINE
from machines import Adder

pytestmark = pytest.mark.asyncio


def others(cluster: Cluster[int], node: aioraft.Node[int]) -> list[aioraft.Node[int]]:
    return [other for other in cluster.nodes if other is not node]


def total(node: aioraft.Node[int]) -> int:
    assert isinstance(node.state_machine, Adder)
    return node.state_machine.total


def totals(cluster: Cluster[int]) -> list[int]:
    return [total(node) for node in cluster.nodes]


async def heard_of(node: aioraft.Node[int], leader: int) -> None:
    async for leadership in node.leadership():
        if leadership.leader == leader:
            return


async def test_a_leader_that_is_cut_off_is_replaced_and_learns_what_it_missed() -> None:
    async with Cluster(3, Adder) as cluster:
        first = await cluster.leader()
        await first.propose(b"1")
        cluster.isolate(first.id)
        second = await cluster.leader()
        assert second is not first
        assert await second.propose(b"1") == 2
        with pytest.raises(aioraft.OutcomeUnknownError):
            await first.propose(b"1", timeout=0.01)
        cluster.heal()
        await cluster.wait_agreement()
        # The one that ended unknown may have been applied, and then on all of them.
        assert totals(cluster) in ([2, 2, 2], [3, 3, 3])


async def test_only_the_side_with_a_majority_goes_on() -> None:
    async with Cluster(5, Adder) as cluster:
        await cluster.leader()
        cluster.partition([1, 2], [3, 4, 5])
        leader = await cluster.leader()
        assert leader.id in (3, 4, 5)
        assert await leader.propose(b"1") == 1
        for node in cluster.nodes[:2]:
            with pytest.raises(aioraft.ReadTimeoutError):
                await node.read_barrier(timeout=0.05)
        # Another partition takes its place.
        cluster.partition([1, 2, 3], [4, 5])
        leader = await cluster.leader()
        assert leader.id in (1, 2, 3)
        assert await leader.propose(b"1") == 2
        cluster.heal()
        await cluster.wait_agreement()
        assert totals(cluster) == [2] * 5


async def test_a_way_that_is_cut_in_one_direction_only() -> None:
    async with Cluster(3, Adder) as cluster:
        leader = await cluster.leader()
        deaf, other = others(cluster, leader)
        await heard_of(deaf, leader.id)
        cluster.cut(leader.id, deaf.id)
        assert await other.propose(b"1") == 1  # the other way round, its votes are not asked for: pre-vote
        assert (await cluster.leader()).id in (leader.id, other.id)
        cluster.heal()
        await cluster.wait_agreement()
        assert total(deaf) == 1


async def test_what_is_delayed_comes_later_and_in_order() -> None:
    async with Cluster(3, Adder) as cluster:
        leader = await cluster.leader()
        follower = others(cluster, leader)[0]
        await heard_of(follower, leader.id)
        loop = asyncio.get_running_loop()
        cluster.delay(0.05)
        begin = loop.time()
        await asyncio.gather(*(follower.propose(b"1") for _ in range(20)))
        # To the leader and back; the entries go out meanwhile.
        assert loop.time() - begin >= 0.1
        cluster.heal()
        await cluster.wait_agreement()
        assert totals(cluster) == [20] * 3


async def test_what_is_lost_is_sent_again_and_applied_once() -> None:
    async with Cluster(3, Adder, seed=3) as cluster:
        assert cluster.seed == 3
        await cluster.leader()
        cluster.drop(0.2)
        for _ in range(5):
            await asyncio.gather(*(node.propose(b"1", timeout=DEADLINE) for node in cluster.nodes))
        cluster.heal()
        await cluster.wait_agreement()
        assert totals(cluster) == [15] * 3


async def test_a_crashed_node_comes_back_with_what_it_had_acknowledged(tmp_path: pathlib.Path) -> None:
    async with Cluster(3, Adder, data_dir=tmp_path) as cluster:
        first = await cluster.leader()
        await asyncio.gather(*(node.propose(b"1") for node in cluster.nodes for _ in range(10)))
        pending = asyncio.ensure_future(first.read_barrier(timeout=None))
        cluster.isolate(first.id)
        await cluster.crash(first.id)
        with pytest.raises(aioraft.RaftError):
            await pending
        with pytest.raises(aioraft.FatalError, match="crashed"):
            await first.propose(b"1")
        await cluster.crash(first.id)  # it is gone already
        cluster.heal()
        await (await cluster.leader()).propose(b"1")
        again = await cluster.restart(first.id)
        assert again is not first and cluster.nodes[first.id - 1] is again
        await again.ready(timeout=DEADLINE)
        assert await again.propose(b"1") == 32
        await cluster.wait_agreement()
        assert totals(cluster) == [32] * 3


async def test_all_crash_at_once_and_come_back(tmp_path: pathlib.Path) -> None:
    async with Cluster(3, Adder, data_dir=tmp_path) as cluster:
        await cluster.leader()
        await cluster.nodes[0].propose_many([b"1"] * 50)
        await asyncio.gather(*(cluster.crash(number) for number in (1, 2, 3)))
        for number in (1, 2, 3):
            await cluster.restart(number)
        assert await cluster.nodes[2].propose(b"1", timeout=DEADLINE) == 51


async def test_an_application_that_hangs_keeps_its_leader() -> None:
    config = dataclasses.replace(TEST_CONFIG, election_timeout=1.0)  # a busy machine may keep all of them from running
    async with Cluster(3, Adder, config=config) as cluster:
        leader = await cluster.leader()
        follower = others(cluster, leader)[0]
        term = leader.status().term
        with cluster.pause_loop(leader.id):
            stuck = asyncio.ensure_future(leader.propose(b"1"))
            # More than twice the election timeout: the followers would have elected another one.
            for _ in range(3):
                await follower.propose(b"1")
                await asyncio.wait([stuck], timeout=1.0)
            assert not stuck.done()
            assert total(leader) == 0
        await stuck
        await cluster.wait_agreement()
        assert total(leader) == 4
        assert leader.status().term == term


async def test_what_cannot_be_done_is_said() -> None:
    async with Cluster(1, Adder) as cluster:
        for fault in (cluster.isolate, lambda n: cluster.cut(1, n), lambda n: cluster.partition([n])):
            with pytest.raises(ValueError, match="has the nodes 1"):
                fault(2)
        with pytest.raises(ValueError, match="between 0 and 1"):
            cluster.drop(2)
    async with Cluster(2, Adder) as cluster:
        with pytest.raises(aioraft.ConfigError, match="seconds"):
            cluster.delay(-1)
        with pytest.raises(aioraft.RaftError, match="data_dir"):
            await cluster.restart(1)


async def test_a_crash_of_a_node_that_is_closing_does_not_reach_its_next_start(tmp_path: pathlib.Path) -> None:
    async with Cluster(1, Adder, data_dir=tmp_path) as cluster:
        for count in range(1, 11):
            node = await cluster.leader()
            assert await node.propose(b"1") == count
            await asyncio.gather(node.aclose(), cluster.crash(1))
            again = await cluster.restart(1)
            await again.ready(timeout=DEADLINE)


async def test_a_pause_within_a_pause_ends_with_the_outer_one() -> None:
    async with Cluster(1, Adder) as cluster:
        node = await cluster.leader()
        with cluster.pause_loop(1):
            with cluster.pause_loop(1):
                stuck = asyncio.ensure_future(node.propose(b"1"))
            await asyncio.wait([stuck], timeout=0.1)
            assert not stuck.done()
        assert await stuck == 1
