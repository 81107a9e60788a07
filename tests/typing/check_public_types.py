"""What type checkers make of the public names; checked by mypy and pyright, never run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import assert_never, assert_type

from aiohttp import web

import aioraft
import aioraft.aiohttp
from aioraft.testing import Cluster, Simulation, SimulationError, SimulationReport
from aioraft.testing.plugin import RaftCluster, RaftSimulation


class Stock(aioraft.StateMachine[int]):
    def apply(self, entry: aioraft.Entry) -> int:
        assert_type(entry.index, int)
        assert_type(entry.term, int)
        assert_type(entry.data, bytes)
        assert_type(entry.timestamp, float)
        return len(entry.data)


class WithBytes(Stock):
    def snapshot(self) -> bytes:
        return b""

    def restore(self, data: bytes) -> None: ...


class WithChunks(Stock):
    def snapshot(self) -> Iterator[bytes]:
        yield b""

    def restore(self, data: Iterator[bytes]) -> None: ...


class WithThread(Stock):
    def snapshot(self) -> Callable[[], list[bytes]]:
        return lambda: [b""]

    def restore(self, data: Iterator[bytes]) -> None: ...

    def durable_applied(self) -> tuple[int, int]:
        return 1, 1


def the_snapshots() -> tuple[aioraft.SnapshotData, ...]:
    return WithBytes().snapshot(), WithChunks().snapshot(), WithThread().snapshot(), memoryview(b""), [bytearray()]


async def the_node(node: aioraft.Node[int]) -> None:
    assert_type(await node.start(), None)
    assert_type(await node.ready(timeout=1), None)
    assert_type(await node.propose(b""), int)
    assert_type(await node.propose(memoryview(b""), timeout=None), int)
    assert_type(await asyncio.create_task(node.propose(bytearray())), int)
    assert_type(await node.propose_many([b""]), list[int])
    assert_type(await node.propose_many([b""], return_exceptions=False, timeout=1.5), list[int])
    assert_type(await node.propose_many([b""], return_exceptions=True), list[int | aioraft.RaftError])
    plain = bool(node.id)
    assert_type(await node.propose_many([b""], return_exceptions=plain), list[int] | list[int | aioraft.RaftError])
    assert_type(await node.propose_many((data for data in [b""]), timeout=aioraft.DEFAULT_TIMEOUT), list[int])
    assert_type(await node.read_barrier(), int)
    assert_type(await node.snapshot(), int)
    assert_type(await node.snapshot(timeout=1.5), int)
    assert_type(await node.transfer_leader(), int)
    assert_type(await node.transfer_leader(2, timeout=1.5), int)
    assert_type(await node.transfer_leader(to=None, timeout=None), int)
    assert_type(await node.wait_for_leader(timeout=1), aioraft.Leadership)
    assert_type(await node.add_learner(4, "a:1", metadata={"zone": "a"}), aioraft.MembershipChange)
    assert_type(await node.promote(4, timeout=None), aioraft.MembershipChange)
    assert_type(await node.demote(4), aioraft.MembershipChange)
    assert_type(await node.remove(4, timeout=1.5), aioraft.MembershipChange)
    assert_type(await node.replace(1, 4, "a:1"), aioraft.MembershipChange)
    assert_type(await node.update_member(4, address="a:1"), aioraft.MembershipChange)
    assert_type(await node.change_members([aioraft.Promote(4), aioraft.Remove(1)]), aioraft.MembershipChange)
    assert_type(await node.change_members(the_changes()), aioraft.MembershipChange)
    assert_type(node.members(), dict[int, aioraft.MemberInfo])
    assert_type(await wrapped(node), int)
    assert_type(await wrapped(node, timeout=1.5), int)
    assert_type(await wrapped(node, timeout=None), int)
    assert_type(node.status(), aioraft.Status)
    assert_type(node.status().peers, tuple[aioraft.PeerStatus, ...])
    assert_type(node.status().peers[0].trouble, str | None)
    assert_type(node.state_machine, aioraft.StateMachine[int])
    commits = node.commits(after=5)
    assert_type(commits.position, int)
    async for entry in commits:
        assert_type(entry, aioraft.Entry)
    async for batch in node.commits().batches():
        assert_type(batch, list[aioraft.Entry])
    async for known in node.leadership():
        assert_type(known.leader, int | None)
    async for term in node.leading():
        async with term as entered:
            assert_type(entered, aioraft.Term)
    assert_type(await node.wait_stopped(), None)
    assert_type(await node.aclose(), None)


def the_changes() -> Iterator[aioraft.Change]:
    yield aioraft.AddLearner(4, "a:1", {"zone": "a"})
    yield aioraft.AddLearner(5, "a:2")
    yield aioraft.Promote(4)
    yield aioraft.Demote(id=3)
    yield aioraft.Remove(2)
    yield aioraft.UpdateMember(1, metadata={})


def the_members(change: aioraft.MembershipChange) -> str:
    assert_type(change.index, int)
    assert_type(change.ids, tuple[int, ...])
    for number, member in change.members.items():
        assert_type(number, int)
        assert_type(member.votes, bool)
        assert_type(member.trouble, str | None)
        if member.metadata.get("zone") == "a":
            return member.address
    return ""


async def wrapped(node: aioraft.Node[int], *, timeout: aioraft.Timeout = aioraft.DEFAULT_TIMEOUT) -> int:
    """A function that passes a timeout on."""
    await node.read_barrier(timeout=timeout)
    return await node.propose(b"", timeout=timeout)


def the_status(status: aioraft.Status, peer: aioraft.PeerStatus) -> str:
    assert_type(status.leader, int | None)
    assert_type(peer.matched, int | None)
    state, role = peer.state, status.role
    if state is None or state == "probe" or state == "replicate":
        return role
    if state != "snapshot":
        assert_never(state)
    return "leads" if role == "leader" else role


async def made() -> None:
    async with aioraft.Node(id=1, members={1: ""}, data_dir=None, state_machine=Stock()) as node:
        assert_type(node, aioraft.Node[int])
    named = aioraft.Node(name="a", seeds=["a:1"], bootstrap_expect=1, data_dir="data", state_machine=Stock())
    assert_type(named, aioraft.Node[int])
    async with Cluster(3, Stock) as cluster:
        assert_type(cluster, Cluster[int])
        assert_type(await cluster.leader(), aioraft.Node[int])
        assert_type(await cluster.wait_agreement(), int)
        assert_type(await cluster.add(), aioraft.Node[int])
        assert_type(await cluster.add(7, timeout=1.5), aioraft.Node[int])


async def the_fixture(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(3, Stock) as cluster:
        assert_type(cluster.nodes, tuple[aioraft.Node[int], ...])


def the_simulation(raft_simulation: RaftSimulation, error: SimulationError) -> None:
    simulation = raft_simulation(3, Stock, command=lambda rng: rng.randbytes(4))
    assert_type(simulation, Simulation[int])
    assert_type(Simulation(1, 3, Stock, command=[b"1", b"2"]), Simulation[int])
    report = simulation.run(seconds=600)
    assert_type(report, SimulationReport)
    assert_type(report.crashes, int)
    assert_type(report.snapshots, int | None)
    assert_type(error.entry, aioraft.Entry | None)
    assert_type(error.transcript, tuple[str, ...])


def the_application(app: web.Application, node: aioraft.Node[int]) -> None:
    key = aioraft.aiohttp.setup(app, node)
    assert_type(key, web.AppKey[aioraft.Node[int]])
    assert_type(app[key], aioraft.Node[int])


def the_errors(error: aioraft.RaftError) -> None:
    assert_type(error.outcome, aioraft.Outcome | None)
    if isinstance(error, aioraft.ApplyError | aioraft.AppliedWithoutResultError):
        assert_type(error.index, int)
    if isinstance(error, aioraft.Compacted):
        assert_type(error.restart, int)


def refused(node: aioraft.Node[int]) -> None:
    node.propose(b"", timeout="1")  # type: ignore[arg-type, unused-coroutine] # pyright: ignore[reportArgumentType, reportUnusedCoroutine]
    if node.status().role == "boss":  # type: ignore[comparison-overlap] # pyright: ignore[reportUnnecessaryComparison]
        return
    node.promote("4")  # type: ignore[arg-type, unused-coroutine] # pyright: ignore[reportArgumentType, reportUnusedCoroutine]
    node.change_members([4])  # type: ignore[list-item, unused-coroutine] # pyright: ignore[reportArgumentType, reportUnusedCoroutine]
    node.propose("text")  # type: ignore[arg-type, unused-coroutine] # pyright: ignore[reportArgumentType, reportUnusedCoroutine]
    machine = Stock()
    aioraft.Node(id=1, data_dir=None, state_machine=machine)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    aioraft.Node(name="a", seeds=["a:1"], data_dir=None, state_machine=machine)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    aioraft.Node(id=1, name="a", seeds=["a:1"], bootstrap_expect=1, data_dir=None, state_machine=machine)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    aioraft.Config(1.0)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    aioraft.StateMachine[int]()  # type: ignore[abstract] # pyright: ignore[reportAbstractUsage]
