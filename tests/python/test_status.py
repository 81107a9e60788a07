"""Node.status: each figure moves by what it counts."""

from __future__ import annotations

import asyncio
import pathlib
import time
from typing import get_args

import pytest

import aioraft
from aioraft.testing import TEST_CONFIG, Cluster
from machines import Adder
from processes import make_random, three_processes
from waiting import until

pytestmark = pytest.mark.asyncio

APPLY_S = 0.02
DEADLINE_S = 30.0


class Slow(Adder):
    def apply(self, entry: aioraft.Entry) -> int:
        time.sleep(APPLY_S)
        return super().apply(entry)


def one_of_three(number: int = 1, data_dir: pathlib.Path | None = None) -> aioraft.Node[int]:
    """A node whose two peers are not there."""
    members = {member: f"127.0.0.1:{7400 + member}" for member in (1, 2, 3)}
    return aioraft.Node(
        id=number,
        members=members,
        data_dir=data_dir,
        state_machine=Adder(),
        listen="127.0.0.1:0",
        cluster="nobody else",
        config=TEST_CONFIG,
    )


async def test_a_leader_knows_what_each_peer_holds() -> None:
    async with Cluster(3, Adder) as cluster:
        leader = await cluster.leader()
        stays, goes = (node for node in cluster.nodes if node is not leader)

        def peer(node: aioraft.Node[int]) -> aioraft.PeerStatus:
            return next(peer for peer in leader.status().peers if peer.id == node.id)

        def has_all(node: aioraft.Node[int]) -> bool:
            return peer(node).matched == leader.status().last_index and peer(node).state == "replicate"

        await leader.propose(b"1")
        await until(lambda: has_all(stays) and has_all(goes), "both peers to hold everything")
        for node in (stays, goes):
            assert peer(node).connected
            assert peer(node).address == node.address
        held = peer(goes).matched
        await goes.aclose()
        await leader.propose(b"1")
        await until(lambda: not peer(goes).connected, "the leader to notice")
        await until(lambda: has_all(stays), "the other peer to hold everything")
        assert peer(goes).matched == held
        assert (peer(stays).matched or 0) > (held or 0)
        others = stays.status().peers
        assert [one.id for one in others] == sorted({1, 2, 3} - {stays.id})
        assert {(one.matched, one.state) for one in others} == {(None, None)}  # only a leader knows


async def test_role_term_leader_and_indexes() -> None:
    assert set(get_args(aioraft.Role)) >= {"forming", "leader", "follower"}
    async with one_of_three() as lonely:
        status = lonely.status()
        assert (status.role, status.leader, status.commit) == ("forming", None, 1)
        assert [peer.connected for peer in status.peers] == [False, False]
    async with Cluster(3, Adder) as cluster:
        leader = await cluster.leader()
        index = await leader.read_barrier()
        before = leader.status()
        for _ in range(3):
            await leader.propose(b"1")
        await cluster.wait_agreement()
        statuses = [node.status() for node in cluster.nodes]
        assert sorted(status.role for status in statuses) == ["follower", "follower", "leader"]
        assert {(status.term, status.leader) for status in statuses} == {(before.term, leader.id)}
        for status in statuses:
            assert index + 3 <= status.commit == status.applied == status.python_applied <= status.last_index
            assert status.first_index <= index
        assert leader.status().timestamp_ns > before.timestamp_ns


async def test_pending_proposals_are_those_without_an_end() -> None:
    async with one_of_three() as node:
        waiting = [asyncio.create_task(node.propose(b"1", timeout=None)) for _ in range(3)]
        await until(lambda: node.status().pending_proposals == 3, "three proposals to be pending")
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        assert node.status().pending_proposals == 3  # cancelling ends the waiting, not the proposal
        with pytest.raises(aioraft.ProposalTimeoutError):
            await node.propose(b"1", timeout=0.01)
        assert node.status().pending_proposals == 3
    assert all(isinstance(task.exception(), aioraft.NodeClosedError) for task in waiting[1:])


async def test_the_longest_drain_includes_apply() -> None:
    async with Cluster(1, Slow) as cluster:
        (node,) = cluster.nodes
        await cluster.leader()
        assert node.status().longest_drain_ns < APPLY_S * 1e9
        await node.propose(b"1")
        assert APPLY_S * 1e9 <= node.status().longest_drain_ns < DEADLINE_S * 1e9


@pytest.mark.parametrize("starts", [1, 2])
async def test_the_log_and_its_disk(tmp_path: pathlib.Path, starts: int) -> None:
    for _ in range(starts - 1):
        async with Cluster(1, Adder, data_dir=tmp_path) as cluster:
            await cluster.leader()
    async with Cluster(1, Adder, data_dir=tmp_path) as cluster:
        (node,) = cluster.nodes
        await cluster.leader()
        await until(lambda: node.status().fsyncs > 0, "the first fsync to be counted")
        before = node.status()
        assert before.boot == starts
        number = b"1".rjust(100_000)
        for _ in range(5):
            await node.propose(number)
        await until(lambda: node.status().fsyncs >= before.fsyncs + 5, "five fsyncs")
        grown = before.log_bytes + 5 * len(number)
        await until(lambda: node.status().log_bytes >= grown, "the log to grow by what was proposed")
        after = node.status()
        assert 0 < after.fsync_last_ns <= after.fsync_max_ns < DEADLINE_S * 1e9
        assert after.last_index == before.last_index + 5


async def test_reproposals_and_duplicates_are_counted_while_leaders_are_killed(tmp_path: pathlib.Path) -> None:
    async with three_processes(tmp_path, make_random().randrange(10**9)) as processes:
        await processes.ask(processes.all, "load", in_flight=64)
        proposed_again = skipped = 0
        while not (proposed_again and skipped):
            leader = await processes.leader()
            await processes.more(processes.all, 50)
            term = leader.leaderships[-1].term
            await leader.kill()
            await processes.leader(after_term=term)
            await processes.more(processes.running, 50)
            statuses = await processes.ask(processes.running, "status")
            proposed_again += sum(status["reproposals"] for status in statuses)
            skipped += max(status["duplicates_skipped"] for status in statuses)
            await processes.start()
            await leader.ask("load", in_flight=64)
        await processes.stop_load()
        reports = await processes.ask(processes.all, "report")
        assert all(report["status"]["pending_proposals"] == 0 for report in reports)
        await processes.assert_counted_once()
