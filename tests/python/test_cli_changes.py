"""`aioraft add`, `promote`, `demote` and `remove`: the members of a running cluster change."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

import aioraft
from aioraft._cli._command import Status
from aioraft.testing import TEST_CONFIG
from aioraft.testing.plugin import RaftCluster
from machines import Adder
from test_cli import command
from test_cli_nodes import CLUSTER, as_json, complaint, said

pytestmark = pytest.mark.asyncio


@contextlib.asynccontextmanager
async def newcomer(number: int, own: socket.socket, cluster: Any) -> AsyncIterator[aioraft.Node[int]]:
    """A node that was added, beside those that are there."""
    members = {node.id: node.address for node in cluster.nodes} | {number: address_of(own)}
    node = aioraft.Node(
        id=number,
        members=members,
        cluster=CLUSTER[1],
        data_dir=None,
        state_machine=Adder(),
        listen=own,
        config=TEST_CONFIG,
    )
    async with node:
        yield node


def bound() -> socket.socket:
    own = socket.socket()
    own.bind(("127.0.0.1", 0))
    return own


def address_of(own: socket.socket) -> str:
    return f"127.0.0.1:{own.getsockname()[1]}"


async def roles(node: aioraft.Node[Any]) -> dict[int, bool]:
    found = await as_json("members", "--node", node.address)
    return {member["id"]: member["votes"] for member in found["members"]}


async def test_a_node_is_added_promoted_demoted_and_removed(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(3, Adder) as cluster:
        leader = await cluster.leader()
        other = next(node for node in cluster.nodes if node.id != leader.id)
        own = bound()
        address = address_of(own)
        # Whichever node is asked.
        added = await as_json("add", address, "--metadata", "zone=b", "--metadata", "rack=", "--node", other.address)
        assert added["ids"] == [4]
        assert added["index"] > 0
        found = await as_json("members", "--node", leader.address)
        (member,) = (it for it in found["members"] if it["id"] == 4)
        assert (member["address"], member["votes"], member["metadata"]) == (address, False, {"zone": "b", "rack": ""})
        table = await said("members", "--node", leader.address)
        (line,) = (it for it in table.splitlines() if it.lstrip().startswith("4 "))
        assert "learner" in line
        assert line.endswith("rack=, zone=b")
        async with newcomer(4, own, cluster) as fourth:
            assert await said("promote", "4", "--node", other.address) == "node 4 votes now\n"
            assert await roles(fourth) == {1: True, 2: True, 3: True, 4: True}
            assert await fourth.propose(b"5") == 5
            assert "node 4 is a learner now" in await said("demote", "4", "--node", fourth.address)
            assert (await roles(leader))[4] is False
            # Done already, and said so.
            again = await as_json("demote", "4", "--node", leader.address)
            assert again["ids"] == [4]
            removed = await said("remove", "4", "--node", leader.address)
            assert removed == "node 4 is no member any more, and its id is never used again\n"
            assert 4 not in await roles(leader)
        refused = await complaint("add", address, "--id", "4", "--node", leader.address, status=Status.REFUSED)
        assert "never used again" in refused


async def test_the_node_that_is_asked_may_be_the_one_that_leaves(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(3, Adder) as cluster:
        leader = await cluster.leader()
        removed = await as_json("remove", str(leader.id), "--node", leader.address)
        assert removed["ids"] == [leader.id]
        with pytest.raises(aioraft.FatalError, match="removed"):
            await leader.wait_stopped()
        other = next(node for node in cluster.nodes if node.id != leader.id)
        assert set(await roles(other)) == {1, 2, 3} - {leader.id}


async def test_several_change_at_once(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(5, Adder) as cluster:
        leader = await cluster.leader()
        one, two, *_ = sorted({1, 2, 3, 4, 5} - {leader.id})
        done = await as_json("demote", str(one), str(two), str(one), "--node", leader.address)
        assert done["ids"] == [one, two]
        voters = {number for number, votes in (await roles(leader)).items() if votes}
        assert voters == {1, 2, 3, 4, 5} - {one, two}


async def test_what_cannot_be_is_refused_and_what_takes_too_long_is_late(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(1, Adder) as cluster:
        leader = await cluster.leader()
        for arguments, expected in (
            (("promote", "9"), "node 9"),
            (("remove", "1"), "nobody would be left"),
            (("add", "127.0.0.1:1", "--metadata", "key=" + "x" * 5000), "at most 4096 bytes"),
        ):
            refused = await complaint(*arguments, "--node", leader.address, status=Status.REFUSED)
            assert expected in refused
        with bound() as own:
            assert await as_json("add", address_of(own), "--id", "7", "--node", leader.address)
            # Nobody runs there, so it never catches up.
            done = await complaint("promote", "7", "--node", leader.address, "--timeout", "1", status=Status.LATE)
            assert "node 7" in done
        assert await roles(leader) == {1: True, 7: False}
        assert await leader.propose(b"2") == 2


async def test_nobody_is_added_in_the_place_of_another(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(2, Adder) as cluster:
        leader = await cluster.leader()
        other = next(node for node in cluster.nodes if node is not leader)
        with bound() as own:
            asked = ("--node", leader.address)
            refused = await complaint("add", address_of(own), "--id", str(other.id), *asked, status=Status.REFUSED)
            assert f"node {other.id} is a member already, reached at {other.address}: leave out --id" in refused
            for given in ((), ("--id", "7")):
                refused = await complaint("add", other.address, *given, *asked, status=Status.REFUSED)
                assert f"node {other.id} runs at {other.address}: give the new one an address of its own" in refused
            assert (await said("add", other.address, "--id", str(other.id), *asked)).endswith("already, and votes\n")
            assert await roles(leader) == {1: True, 2: True}
            # Whoever has lost the answer asks again.
            for _ in range(2):
                assert (await as_json("add", address_of(own), *asked))["ids"] == [3]
            assert "node 3 may join, without a vote: start it at" in await said("add", address_of(own), *asked)
            async with newcomer(3, own, cluster) as third:
                await third.read_barrier()
                assert "node 3 is a member already: give it a vote" in await said("add", third.address, *asked)
            assert leader.members()[other.id].address == other.address
            assert await roles(leader) == {1: True, 2: True, 3: False}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("add", "--node", "a:1"), "HOST:PORT"),
        (("add", "somewhere", "--node", "a:1"), "has no port"),
        (("add", "b:1", "--id", "0", "--node", "a:1"), "from 1 to"),
        (("add", "b:1", "--metadata", "zone", "--node", "a:1"), "no KEY=VALUE"),
        (("add", "b:1", "--metadata", "=b", "--node", "a:1"), "no KEY=VALUE"),
        (("promote", "--node", "a:1"), "ID"),
        (("remove", "one", "--node", "a:1"), "no node's id"),
        (("demote", "1"), "--node"),
    ],
)
async def test_wrong_arguments(arguments: tuple[str, ...], expected: str) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (Status.USAGE, "")
    assert expected in done.stderr
