"""Members change: nodes join, get and lose votes, leave and are replaced, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

import aioraft
from aioraft import AddLearner, Demote, Outcome, Promote, Remove, UpdateMember
from aioraft.testing import TEST_CONFIG, Cluster
from aioraft.testing.plugin import RaftCluster
from core_help import DEADLINE
from machines import Adder
from processes import make_random
from waiting import until

pytestmark = pytest.mark.asyncio

IN_FLIGHT = 4
"""Proposals of each node under load."""
MANY = 100
"""Proposals that a load has had answers to, before and between what happens to the members."""


IMPOSSIBLE: list[tuple[list[aioraft.Change], str]] = [
    ([Promote(9)], "node 9 is not a member of this cluster"),
    ([Remove(9)], "node 9 is not a member of this cluster"),
    ([UpdateMember(9, metadata={})], "node 9 is not a member of this cluster"),
    ([Demote(1), Remove(2)], "nobody would be left to vote"),
    ([AddLearner(3, "a:1"), Promote(3)], "not a member yet"),
    ([], "1 to 32 changes"),
    ([AddLearner(3, "a:1", {"key": "x" * 4096})], "at most 4096 bytes"),
]
"""Of two nodes, that have no others beside them."""


class Load:
    """Every node of a cluster proposes without pause, also those that join later."""

    def __init__(self, cluster: Cluster[int]) -> None:
        self.acknowledged = 0
        self.removed = 0
        """Calls that ended with `RemovedError`, and may or may not have been applied."""
        self._cluster = cluster
        self._ends = False
        self._clients: dict[int, list[asyncio.Task[None]]] = {}

    async def more(self) -> None:
        """Wait for many more answers."""
        for node in self._cluster.nodes:
            if node.id not in self._clients:
                self._clients[node.id] = [asyncio.create_task(self._work(node)) for _ in range(IN_FLIGHT)]
        goal = self.acknowledged + MANY
        await until(lambda: self.acknowledged >= goal, f"{MANY} more answers")

    async def stop(self) -> None:
        self._ends = True
        await asyncio.gather(*(client for clients in self._clients.values() for client in clients))

    async def _work(self, node: aioraft.Node[int]) -> None:
        while not self._ends:
            try:
                await node.propose(b"1", timeout=DEADLINE)
            except aioraft.RemovedError as error:
                self.removed += error.outcome is Outcome.UNKNOWN
                return
            self.acknowledged += 1


@contextlib.asynccontextmanager
async def under_load(cluster: Cluster[int]) -> AsyncIterator[Load]:
    """Have all nodes propose meanwhile; at the end nothing that was acknowledged is lost, and nothing is doubled."""
    load = Load(cluster)
    await load.more()
    yield load
    await load.more()
    await load.stop()
    await cluster.wait_agreement(timeout=DEADLINE)
    totals = {total(node) for node in running(cluster)}
    assert len(totals) == 1, f"the replicas differ: {totals}"
    assert load.acknowledged <= totals.pop() <= load.acknowledged + load.removed


def total(node: aioraft.Node[int]) -> int:
    assert isinstance(node.state_machine, Adder)
    return node.state_machine.total


def running(cluster: Cluster[int]) -> list[aioraft.Node[int]]:
    return [node for node in cluster.nodes if node.status().role not in ("closed", "stopped")]


def votes(node: aioraft.Node[int]) -> dict[int, bool]:
    return {number: member.votes for number, member in node.members().items()}


async def everybody_knows(cluster: Cluster[int], expected: dict[int, bool]) -> None:
    """Wait until all members take these for the members, and say who votes."""

    def know() -> bool:
        return all(votes(node) == expected for node in cluster.nodes if node.id in expected)

    await until(know, f"all to know of {expected}: {[votes(node) for node in cluster.nodes]}")


async def others(cluster: Cluster[int], *but: aioraft.Node[int]) -> list[aioraft.Node[int]]:
    """Return the rest, who know of a leader."""
    rest = [node for node in running(cluster) if node not in but]
    for node in rest:
        await node.wait_for_leader(timeout=DEADLINE)
    return rest


async def assert_removed(node: aioraft.Node[int]) -> None:
    """It has heard of its removal, and every call says so."""
    with pytest.raises(aioraft.RemovedError, match="removed from its cluster"):
        async with asyncio.timeout(DEADLINE):
            await node.wait_stopped()
    calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
        lambda: node.propose(b"1"),
        node.read_barrier,
        lambda: node.promote(1),
    ]
    for call in calls:
        with pytest.raises(aioraft.RemovedError) as caught:
            await call()
        assert caught.value.outcome is Outcome.NOT_COMMITTED
    with pytest.raises(aioraft.RemovedError):
        node.commits()
    assert node.status().role == "stopped"


# Joining, voting, leaving


@pytest.mark.parametrize("asked", ["leader", "follower"])
async def test_nodes_come_and_go_under_load_and_no_command_is_lost_or_doubled(
    raft_cluster: RaftCluster, asked: str
) -> None:
    async with raft_cluster(3, Adder) as cluster:
        leader = await cluster.leader()
        node = leader if asked == "leader" else (await others(cluster, leader))[0]
        async with under_load(cluster) as load:
            await cluster.add()
            change = await node.add_learner(4, cluster.nodes[3].address)  # again, of whom the test asks
            assert change.ids == (4,)
            assert votes(node) == {1: True, 2: True, 3: True, 4: False}
            await load.more()
            promoted = await node.promote(4)
            assert promoted.index > change.index
            assert {number: member.votes for number, member in promoted.members.items()} == votes(node)
            assert votes(node) == {1: True, 2: True, 3: True, 4: True}
            await load.more()
            await node.demote(4)
            await everybody_knows(cluster, {1: True, 2: True, 3: True, 4: False})
            assert cluster.nodes[3].status().role == "learner"
            await load.more()
            await node.promote(4)
            await load.more()
            assert 4 not in (await node.remove(4)).members
            await assert_removed(cluster.nodes[3])
        await everybody_knows(cluster, {1: True, 2: True, 3: True})


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("asked", ["itself", "another"])
@pytest.mark.parametrize("removed", ["leader", "follower"])
async def test_a_node_is_removed_whoever_leads_and_whoever_is_asked(
    raft_cluster: RaftCluster, tmp_path: pathlib.Path, removed: str, asked: str, count: int
) -> None:
    async with raft_cluster(count, Adder, data_dir=tmp_path) as cluster:
        leader = await cluster.leader()
        follower = (await others(cluster, leader))[0]
        gone = leader if removed == "leader" else follower
        other = follower if removed == "leader" else leader
        async with under_load(cluster):
            change = await (gone if asked == "itself" else other).remove(gone.id)
            assert change.ids == (gone.id,)
            assert set(change.members) == {1, 2, 3}.intersection(range(1, count + 1)) - {gone.id}
            await assert_removed(gone)
        assert set(other.members()) == set(change.members)
        # It is told again whenever it is started.
        again = await cluster.restart(gone.id)
        await assert_removed(again)
        assert await other.propose(b"0", timeout=DEADLINE) == total(other)


async def test_a_cluster_grows_from_three_to_five_and_shrinks_to_one(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(3, Adder) as cluster:
        async with under_load(cluster) as load:
            for _ in range(2):
                await cluster.add()
            leader = await cluster.leader()
            change = await leader.change_members([Promote(4), Promote(5)])
            assert change.ids == (4, 5)
            await load.more()
            await everybody_knows(cluster, dict.fromkeys(range(1, 6), True))
            for number in (1, 2, 3, 4):
                await cluster.nodes[number % 5].remove(number)
                await load.more()
            assert votes(cluster.nodes[4]) == {5: True}
        assert running(cluster) == [cluster.nodes[4]]
        assert cluster.nodes[4].status().role == "leader"


async def test_what_is_said_of_members_is_known_to_all(raft_cluster: RaftCluster, tmp_path: pathlib.Path) -> None:
    async with raft_cluster(3, Adder, data_dir=tmp_path) as cluster:
        leader = await cluster.leader()
        fourth = await cluster.add()
        await leader.update_member(4, metadata={"zone": "b"})
        await leader.update_member(leader.id, metadata={"zone": "a", "rack": ""})
        for node in cluster.nodes:
            await node.read_barrier()
            members = node.members()
            assert list(members) == [1, 2, 3, 4]
            assert members[4].metadata == {"zone": "b"}
            assert members[leader.id].metadata == {"zone": "a", "rack": ""}
            assert members[4].address == fourth.address
            assert members[node.id].connected
            assert node.status().metadata == members[node.id].metadata
        # An address says nothing of the metadata, and nobody is dialled there while the old connection stands.
        await leader.update_member(4, address=f"localhost:{fourth.address.rpartition(':')[2]}")
        assert leader.members()[4].metadata == {"zone": "b"}
        await cluster.crash(4)
        await (await cluster.restart(4)).ready(timeout=DEADLINE)
        assert cluster.nodes[3].status().metadata == {"zone": "b"}
        await until(lambda: leader.members()[4].address == fourth.address, "it says itself where it is")


async def test_several_that_change_members_at_once_do_so_one_after_the_other(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(3, Adder) as cluster:
        leader = await cluster.leader()
        added = [await cluster.add() for _ in range(3)]
        await others(cluster)
        changes = await asyncio.gather(
            *(node.promote(new.id) for node, new in zip(cluster.nodes, added, strict=False)),
            added[0].promote(4),
            added[1].update_member(5, metadata={"zone": "b"}),
        )
        assert len({change.index for change in changes}) == len(changes)
        await everybody_knows(cluster, dict.fromkeys(range(1, 7), True))
        assert await leader.propose(b"5") == 5


# What cannot be


async def test_what_cannot_be_is_said_and_changes_nothing(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(2, Adder) as cluster:
        leader = await cluster.leader()
        (other,) = await others(cluster, leader)
        for changes, reason in IMPOSSIBLE:
            for node in (leader, other):
                with pytest.raises(aioraft.MembershipError, match=reason) as caught:
                    await node.change_members(changes)
                assert caught.value.outcome is Outcome.NOT_COMMITTED
                assert not isinstance(caught.value, TimeoutError)
        with pytest.raises(aioraft.MembershipTimeoutError, match="timeout = 0") as late:
            await leader.promote(2, timeout=0)
        assert late.value.outcome is Outcome.NOT_COMMITTED
        assert votes(leader) == {1: True, 2: True}
    for refused in (leader.promote(2), leader.replace(1, 3, "a:1")):
        with pytest.raises(aioraft.NodeClosedError):
            await refused


async def test_mistakes_are_said_before_anything_is_asked(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(1, Adder) as cluster:
        node = await cluster.leader()
        wrong: Any
        for wrong in (0, "2", True, None):
            with pytest.raises(aioraft.ConfigError, match="id = "):
                await node.promote(wrong)
        for wrong in ("a", "a:0", 7):
            with pytest.raises(aioraft.ConfigError, match="address = "):
                await node.add_learner(2, wrong)
        for wrong in ({"key": 1}, {1: "value"}, ["key"], {"key": "\udc80"}):
            with pytest.raises(aioraft.ConfigError, match="metadata = "):
                await node.update_member(1, metadata=wrong)
        with pytest.raises(aioraft.ConfigError, match="nothing is to change about node 1"):
            await node.update_member(1)
        wrong = [("promote", 1)]
        with pytest.raises(aioraft.ConfigError, match="no change of the members"):
            await node.change_members(wrong)
        with pytest.raises(aioraft.ConfigError, match="timeout = 'soon'"):
            wrong = "soon"
            await node.promote(1, timeout=wrong)
        with pytest.raises(aioraft.ConfigError, match="old = new = 1"):
            await node.replace(1, 1, "a:1")


async def test_members_are_not_changed_from_inside_apply(raft_cluster: RaftCluster) -> None:
    ends: list[BaseException] = []

    class Meddler(Adder):
        def apply(self, entry: aioraft.Entry) -> int:
            call = cluster.nodes[0].remove(2)
            try:
                call.send(None)
            except aioraft.ReentrantCallError as error:
                ends.append(error)
            return super().apply(entry)

    async with raft_cluster(1, Meddler) as cluster:
        assert await (await cluster.leader()).propose(b"5") == 5
    assert len(ends) == 1


async def test_without_a_majority_members_do_not_change_and_the_error_says_whom_it_takes(
    raft_cluster: RaftCluster,
) -> None:
    async with raft_cluster(3, Adder) as cluster:
        leader = await cluster.leader()
        rest = await others(cluster, leader)
        for node in rest:
            await node.aclose()
        with pytest.raises(aioraft.MembershipTimeoutError) as late:
            await leader.remove(rest[0].id, timeout=1.0)
        assert late.value.outcome in (Outcome.UNKNOWN, Outcome.NOT_COMMITTED)
        assert votes(leader) == {1: True, 2: True, 3: True}


async def test_a_learner_that_does_not_run_or_cannot_be_reached_is_not_promoted(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(3, Adder) as cluster:
        leader = await cluster.leader()
        other = (await others(cluster, leader))[0]
        await leader.add_learner(9, "127.0.0.1:1")
        for node in (leader, other):
            with pytest.raises(aioraft.MembershipTimeoutError, match="node 9 has not connected yet") as absent:
                await node.promote(9, timeout=1.5)
            # A follower has asked the leader, and does not hear what becomes of that in the end.
            assert absent.value.outcome is (Outcome.NOT_COMMITTED if node is leader else Outcome.UNKNOWN)
        await leader.remove(9)
        fourth = await cluster.add()
        await fourth.ready(timeout=DEADLINE)
        cluster.isolate(4)
        await leader.propose(b"5")  # it lacks this
        with pytest.raises(aioraft.MembershipTimeoutError, match=r"node 4 (has not caught up|does not answer)") as late:
            await leader.promote(4, timeout=1.5)
        assert late.value.outcome is Outcome.NOT_COMMITTED
        assert votes(leader)[4] is False
        cluster.heal()
        await leader.promote(4)
        assert votes(leader)[4] is True


# Asked again


async def test_asked_again_nothing_is_done_again(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(3, Adder) as cluster:
        leader = await cluster.leader()
        other = (await others(cluster, leader))[0]
        fourth = await cluster.add()
        for node in (leader, other):
            assert (await node.add_learner(4, fourth.address)).ids == (4,)
        for node in (leader, other):
            await node.promote(4)
        await leader.add_learner(4, fourth.address)
        assert votes(leader)[4] is True  # and stays what it is
        before = leader.status().incarnation
        for node in (leader, other):
            assert (await node.remove(4)).ids == (4,)
        assert leader.status().incarnation == before + 1
        await assert_removed(fourth)
        # Removed is for good, however late an answer was lost.
        for node in (leader, other):
            with pytest.raises(aioraft.MembershipError, match="an id is never used again") as caught:
                await node.add_learner(4, fourth.address)
            assert caught.value.outcome is Outcome.NOT_COMMITTED
            with pytest.raises(aioraft.MembershipError, match="node 4 was removed from this cluster"):
                await node.promote(4)


async def test_a_lost_answer_and_a_retry_never_add_or_remove_twice(
    raft_cluster: RaftCluster, tmp_path: pathlib.Path
) -> None:
    chance = make_random()
    async with raft_cluster(3, Adder, data_dir=tmp_path, seed=chance.getrandbits(32)) as cluster:
        await cluster.leader()
        for round_ in range(6):
            new = await cluster.add()
            await others(cluster)
            # Each change is asked for, its caller leaves somewhere in between or its leader crashes, and asks again.
            for change in (AddLearner(new.id, new.address), Promote(new.id), Remove(new.id)):
                leader = await cluster.leader()
                caller = (await others(cluster, leader, new))[0]
                call = asyncio.create_task(caller.change_members([change], timeout=DEADLINE))
                await asyncio.wait([call], timeout=chance.uniform(0, 0.02))
                if round_ % 2:
                    await cluster.crash(leader.id)
                else:
                    call.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await call
                assert (await caller.change_members([change], timeout=DEADLINE)).ids == (new.id,)
                if round_ % 2:
                    await cluster.restart(leader.id)
            await assert_removed(cluster.nodes[new.id - 1])  # it may have led, and crashed
            await cluster.wait_agreement(timeout=DEADLINE)
            for node in running(cluster):
                assert node.status().incarnation == round_ + 1, "removed once"
                assert votes(node) == {1: True, 2: True, 3: True}


async def test_cancelling_stops_the_waiting_and_not_the_change(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(3, Adder) as cluster:
        leader = await cluster.leader()
        call = asyncio.create_task(leader.add_learner(4, "127.0.0.1:1"))
        await asyncio.sleep(0)  # it has begun
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: 4 in leader.members(), "the change to take effect")


# Joint changes and crashes


async def test_a_joint_change_comes_to_its_end_though_its_leader_crashes(
    raft_cluster: RaftCluster, tmp_path: pathlib.Path
) -> None:
    chance = make_random()
    async with raft_cluster(3, Adder, data_dir=tmp_path, seed=chance.getrandbits(32)) as cluster:
        await cluster.leader()
        for _ in range(2):
            await (await cluster.add()).ready(timeout=DEADLINE)
        votes_of_both: list[Callable[[], list[aioraft.Change]]] = [
            lambda: [Promote(4), Promote(5)],
            lambda: [Demote(4), Demote(5)],
        ]
        for round_ in range(6):
            change = votes_of_both[round_ % 2]()
            leader = await cluster.leader()
            caller = (await others(cluster, leader))[0]
            call = asyncio.create_task(caller.change_members(change, timeout=DEADLINE))
            await asyncio.wait([call], timeout=chance.uniform(0, 0.03))
            await cluster.crash(leader.id)
            assert (await call).ids == (4, 5)
            await cluster.restart(leader.id)
            is_voter = round_ % 2 == 0
            await everybody_knows(cluster, {1: True, 2: True, 3: True, 4: is_voter, 5: is_voter})
        await cluster.wait_agreement(timeout=DEADLINE)


@pytest.mark.parametrize("old", ["leader", "follower", "crashed"])
async def test_a_node_votes_in_the_place_of_another(
    raft_cluster: RaftCluster, tmp_path: pathlib.Path, old: str
) -> None:
    async with raft_cluster(3, Adder, data_dir=tmp_path) as cluster:
        leader = await cluster.leader()
        follower, caller = await others(cluster, leader)
        gone = leader if old == "leader" else follower
        if old == "crashed":
            await cluster.crash(gone.id)
        fourth = await cluster.add()
        assert await caller.propose(b"5", timeout=DEADLINE) == 5
        change = await caller.replace(gone.id, 4, fourth.address, metadata={"zone": "b"})
        assert change.ids == (4, gone.id)
        assert set(change.members) == {1, 2, 3, 4} - {gone.id}
        assert change.members[4].metadata == {"zone": "b"}
        assert all(member.votes for member in change.members.values())
        if old == "crashed":
            await cluster.restart(gone.id)
        await assert_removed(cluster.nodes[gone.id - 1])
        # Done already, and said so, whoever is asked.
        for node in running(cluster):
            await node.ready(timeout=DEADLINE)
            again = await node.replace(gone.id, 4, fourth.address)
            assert again.ids == (4, gone.id)
            assert again.members[4].metadata == {"zone": "b"}
        assert fourth.status().incarnation == 1
        assert await fourth.propose(b"2") == 7


async def test_a_node_has_itself_replaced(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(3, Adder) as cluster:
        leader = await cluster.leader()
        fourth = await cluster.add()
        change = await leader.replace(leader.id, 4, fourth.address)
        assert set(change.members) == {1, 2, 3, 4} - {leader.id}
        await assert_removed(leader)
        assert await fourth.propose(b"5", timeout=DEADLINE) == 5


async def test_a_replacement_goes_on_where_it_was(raft_cluster: RaftCluster, tmp_path: pathlib.Path) -> None:
    chance = make_random()
    async with raft_cluster(3, Adder, data_dir=tmp_path, seed=chance.getrandbits(32)) as cluster:
        await cluster.leader()
        old = 1
        for new in range(4, 10):
            await cluster.add(new)
            address = cluster.nodes[new - 1].address
            caller, other = (node for node in await others(cluster) if node.id not in (old, new))
            call = asyncio.create_task(caller.replace(old, new, address, timeout=DEADLINE))
            await asyncio.wait([call], timeout=chance.uniform(0, 0.06))
            await cluster.crash(caller.id)
            with contextlib.suppress(aioraft.FatalError):
                await call
            restarted = cluster.restart(caller.id)
            if new % 2:
                await restarted
            # By another one, or by the one that has crashed.
            again = cluster.nodes[caller.id - 1] if new % 2 else other
            change = await again.replace(old, new, address, timeout=DEADLINE)
            assert change.ids == (new, old)
            if not new % 2:
                await restarted
            await assert_removed(cluster.nodes[old - 1])
            await everybody_knows(cluster, dict.fromkeys({caller.id, other.id, new}, True))
            assert {node.status().incarnation for node in running(cluster)} == {new - 3}
            old = caller.id
        await cluster.wait_agreement(timeout=DEADLINE)


async def test_a_replacement_that_gets_stuck_says_how_far_it_is(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(3, Adder) as cluster:
        leader = await cluster.leader()
        other = (await others(cluster, leader))[0]
        says = "node 4 has not connected yet.*node 4 is a member by now: replace again to go on, or remove it"
        with pytest.raises(aioraft.MembershipTimeoutError, match=says) as late:
            await leader.replace(other.id, 4, "127.0.0.1:1", timeout=1.0)
        assert late.value.outcome is Outcome.UNKNOWN
        assert votes(leader) == {1: True, 2: True, 3: True, 4: False}
        with pytest.raises(aioraft.MembershipError, match="node 4 has no vote"):
            await leader.replace(4, 5, "127.0.0.1:1")
        await leader.remove(4)
        with pytest.raises(aioraft.MembershipError, match="node 9 is no member"):
            await leader.replace(9, 5, "127.0.0.1:1")
        with pytest.raises(aioraft.MembershipError, match="never used again"):
            await leader.replace(other.id, 4, "127.0.0.1:1")
        assert set(leader.members()) == {1, 2, 3}


# Directories, and lists of members


async def test_m1_a_wiped_disk_is_refused_and_comes_back_under_a_new_id(
    raft_cluster: RaftCluster, tmp_path: pathlib.Path
) -> None:
    async with raft_cluster(3, Adder, data_dir=tmp_path) as cluster:
        leader = await cluster.leader()
        lost = (await others(cluster, leader))[0].id
        assert await leader.propose(b"5") == 5
        await cluster.crash(lost)
        shutil.rmtree(tmp_path / f"node-{lost}")
        wiped = await cluster.restart(lost)

        def trouble(node: aioraft.Node[int], peer: int) -> str:
            return node.members()[peer].trouble or ""

        says = "another data directory"
        await until(lambda: says in trouble(leader, lost) and says in trouble(wiped, leader.id), "both to refuse")
        assert total(wiped) == 0
        await wiped.aclose()
        fresh = await cluster.add(4)
        await leader.replace(lost, 4, fresh.address)
        await cluster.wait_agreement(timeout=DEADLINE)
        assert total(fresh) == 5
        assert await fresh.propose(b"2") == 7


async def test_members_only_bootstrap_after_that_the_log_knows_better(
    raft_cluster: RaftCluster, tmp_path: pathlib.Path
) -> None:
    async with raft_cluster(3, Adder, data_dir=tmp_path) as cluster:
        leader = await cluster.leader()
        await (await cluster.add()).ready(timeout=DEADLINE)
        await leader.promote(4)
        other = (await others(cluster, leader))[0]
        await leader.remove(other.id)
        kept = {1, 2, 3, 4} - {other.id}
        for number in sorted(kept):
            address = cluster.nodes[number - 1].address
            await cluster.nodes[number - 1].aclose()
            # Alone, with one that was removed, and with one that never was.
            for members in ({number: address}, {number: address, other.id: other.address, 9: "127.0.0.1:1"}):
                node = aioraft.Node(
                    id=number,
                    members=members,
                    data_dir=tmp_path / f"node-{number}",
                    state_machine=Adder(),
                    cluster="aioraft.testing",
                    config=TEST_CONFIG,
                )
                async with node:
                    await node.ready(timeout=DEADLINE)
                    assert set(node.members()) == kept
            await cluster.restart(number)
        await everybody_knows(cluster, dict.fromkeys(kept, True))


async def test_a_node_that_nobody_has_added_waits_and_founds_nothing(
    raft_cluster: RaftCluster, tmp_path: pathlib.Path
) -> None:
    async with raft_cluster(2, Adder, data_dir=tmp_path) as cluster:
        leader = await cluster.leader()
        members = {node.id: node.address for node in cluster.nodes} | {3: "127.0.0.1:1"}
        node = aioraft.Node(
            id=3,
            members=members,
            data_dir=tmp_path / "node-3",
            state_machine=Adder(),
            listen="127.0.0.1:0",
            cluster="aioraft.testing",
            config=TEST_CONFIG,
        )
        async with node:
            with pytest.raises(aioraft.ReadTimeoutError, match=r"add it first \(`add_learner`, or `aioraft add`\)"):
                await node.ready(timeout=2.0)
            assert node.status().role == "forming"
            await leader.add_learner(3, "127.0.0.1:1")
            await node.ready(timeout=DEADLINE)
            assert node.status().role == "learner"
            assert await node.propose(b"5") == 5
