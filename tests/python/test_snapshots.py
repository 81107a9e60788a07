"""aioraft.Node: snapshots are taken, the log is compacted behind them, and a node starts from its last one."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import os
import pathlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import aioraft
from aioraft.testing import TEST_CONFIG, Cluster
from core_help import outcome
from machines import Adder
from processes import reserved_addresses
from waiting import until

QUICK = {"election_timeout": 0.1, "heartbeat_interval": 0.01}


class Counting(Adder):
    """Counts what it applies, and keeps its snapshot in the form `form`."""

    form: Callable[[bytes], Any] = staticmethod(lambda state: state)

    def __init__(self) -> None:
        super().__init__()
        self.applied = 0
        self.restored: list[int] = []

    def apply(self, entry: aioraft.Entry) -> int:
        self.applied += 1
        return super().apply(entry)

    def snapshot(self) -> Any:
        return type(self).form(str(self.total).encode())

    def restore(self, data: Any) -> None:
        self.total = int(data if isinstance(data, bytes) else b"".join(data))
        self.restored.append(self.total)


class InChunks(Counting):
    form = staticmethod(lambda state: (state[at : at + 1] for at in range(len(state))))


class InThread(Counting):
    form = staticmethod(lambda state: lambda: state)


def node(
    folder: pathlib.Path, members: dict[int, str], machine: aioraft.StateMachine[int], **settings: Any
) -> aioraft.Node[int]:
    config = aioraft.Config(**(QUICK | settings))
    return aioraft.Node(id=1, members=members, data_dir=folder, state_machine=machine, config=config)


async def begin_of_log(running: aioraft.Node[int]) -> int:
    """Where a reader of all that there is can begin, while the log may be compacted further."""
    restart = 0
    while True:
        try:
            entry = await anext(running.commits(after=restart))
        except aioraft.Compacted as compacted:
            assert compacted.restart > restart
            restart = compacted.restart
        else:
            assert entry.index > restart
            return restart


@pytest.fixture
def members() -> Iterator[dict[int, str]]:
    with reserved_addresses(1) as addresses:
        yield addresses


@pytest.mark.parametrize("kind", [Counting, InChunks, InThread])
@pytest.mark.asyncio
async def test_a_node_starts_from_its_last_snapshot(
    kind: type[Counting], tmp_path: pathlib.Path, members: dict[int, str]
) -> None:
    async with node(tmp_path, members, kind()) as first:
        await first.propose_many([b"1"] * 500)
        index = await first.snapshot()
        assert index >= 500
        assert await first.propose_many([b"1"] * 3) == [501, 502, 503]
    machine = kind()
    async with node(tmp_path, members, machine) as second:
        await second.read_barrier()
        assert (machine.restored, machine.applied, machine.total) == ([500], 3, 503)
        assert await second.propose(b"1") == 504


def is_compacted(running: aioraft.Node[int]) -> bool:
    status = running.status()
    return status.first_index > status.last_index - 500


@pytest.mark.parametrize("limit", [{"snapshot_entries": 100}, {"snapshot_bytes": 2048}], ids=["entries", "bytes"])
@pytest.mark.asyncio
async def test_the_log_is_compacted_by_itself(
    limit: dict[str, int], tmp_path: pathlib.Path, members: dict[int, str]
) -> None:
    for start in range(3):
        machine = Counting()
        async with node(tmp_path, members, machine, snapshot_trail=20, **limit) as running:
            await running.read_barrier()
            assert machine.total == 1000 * start
            assert machine.applied < 500  # what `is_compacted` leaves
            for _ in range(10):
                await running.propose_many([b"1"] * 100)
            await until(functools.partial(is_compacted, running), "the log is compacted")
            restart = await begin_of_log(running)
            assert restart > 0


@pytest.mark.asyncio
async def test_never_means_never(tmp_path: pathlib.Path, members: dict[int, str]) -> None:
    async with node(tmp_path, members, Counting(), snapshot_entries=None, snapshot_bytes=None) as running:
        await running.propose_many([b"1"] * 1000)
        await running.propose(b"1")
        entry = await anext(running.commits(after=0))
        assert entry.data == b"1"
        assert running.status().first_index < entry.index + 1


@pytest.mark.asyncio
async def test_a_log_that_is_kept_whole_is_said_once(
    tmp_path: pathlib.Path, members: dict[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aioraft.node")
    async with node(tmp_path, members, Adder()) as running:
        await running.propose(b"1")
        with pytest.raises(aioraft.SnapshotError, match=r"has no snapshot\(\)"):
            await running.snapshot()
    said = [record for record in caplog.records if "kept whole" in record.getMessage()]
    assert [record.levelname for record in said] == ["INFO"]


@pytest.mark.asyncio
async def test_without_a_restore_for_its_snapshot_a_node_stops(tmp_path: pathlib.Path, members: dict[int, str]) -> None:
    async with node(tmp_path, members, Counting()) as first:
        await first.propose(b"1")
        await first.snapshot()
    second = node(tmp_path, members, Adder())
    with pytest.raises(aioraft.FatalError, match=r"restore raised NotImplementedError.*Adder has no restore") as raised:
        async with second:
            await second.wait_stopped()
    assert isinstance(raised.value.__cause__, NotImplementedError)


@pytest.mark.asyncio
async def test_a_snapshot_that_fails_is_tried_again(tmp_path: pathlib.Path, members: dict[int, str]) -> None:
    class Failing(Counting):
        attempts = 0

        def snapshot(self) -> Any:
            self.attempts += 1
            if self.attempts < 3:
                raise ValueError("told to fail")
            return super().snapshot()

    machine = Failing()
    async with node(tmp_path, members, machine, snapshot_entries=50, snapshot_trail=0) as running:
        raised = await outcome(running.snapshot())
        assert type(raised) is aioraft.SnapshotError

        async def compacted() -> None:
            while running.status().first_index < 50:
                await running.propose(b"1")

        await asyncio.wait_for(compacted(), 30)
        assert machine.attempts >= 3


@pytest.mark.asyncio
async def test_every_node_takes_its_own(tmp_path: pathlib.Path) -> None:
    async with Cluster(3, Counting, data_dir=tmp_path) as cluster:
        leader = await cluster.leader()
        await leader.propose_many([b"1"] * 100)
        await cluster.wait_agreement()
        for running in cluster.nodes:
            await running.snapshot()
        follower = next(running for running in cluster.nodes if running is not leader)
        await cluster.crash(follower.id)
        await (await cluster.leader()).propose_many([b"1"] * 10)
        await cluster.restart(follower.id)
        await cluster.wait_agreement()
        machines = [running.state_machine for running in cluster.nodes]
        assert {machine.total for machine in machines if isinstance(machine, Counting)} == {110}
        restored = cluster.nodes[follower.id - 1].state_machine
        assert isinstance(restored, Counting)
        assert restored.restored == [100]


@pytest.mark.parametrize("kind", [Counting, InChunks, InThread])
@pytest.mark.asyncio
async def test_a_follower_that_was_away_too_long_is_sent_the_state(kind: type[Counting]) -> None:
    """While it runs: what it waits for, and who reads its commits, notice that it is there."""
    config = dataclasses.replace(TEST_CONFIG, snapshot_entries=100, snapshot_trail=10)
    async with Cluster(3, kind, config=config) as cluster:
        leader = await cluster.leader()
        follower = next(running for running in cluster.nodes if running is not leader)
        await leader.propose(b"1")
        await cluster.wait_agreement()
        reader = follower.commits(after=0)
        assert (await anext(reader)).data == b"1"
        reading = asyncio.ensure_future(anext(reader))
        cluster.isolate(follower.id)
        for _ in range(10):
            await leader.propose_many([b"1"] * 100)
        await until(lambda: leader.status().first_index > 500, "the leader's log is compacted")
        barrier = asyncio.ensure_future(follower.read_barrier(timeout=None))
        cluster.heal()
        assert await barrier > 1000
        machine = follower.state_machine
        assert isinstance(machine, Counting)
        assert machine.restored
        assert machine.total == 1001
        error = await outcome(reading)
        assert isinstance(error, aioraft.Compacted)
        assert await follower.propose(b"1") == 1002
        assert await begin_of_log(follower) >= error.restart


@pytest.mark.asyncio
async def test_what_only_the_snapshot_contains_ends_without_a_result() -> None:
    config = dataclasses.replace(TEST_CONFIG, snapshot_entries=None, snapshot_trail=0)
    async with Cluster(3, Counting, config=config) as cluster:
        leader = await cluster.leader()
        follower = next(running for running in cluster.nodes if running is not leader)
        await follower.propose(b"1")
        # It is heard, and hears nothing: not that its proposal is committed, either.
        for other in cluster.nodes:
            if other is not follower:
                cluster.cut(other.id, follower.id)
        proposing = asyncio.ensure_future(follower.propose(b"1", timeout=None))
        await until(lambda: total(leader) == 2, "the leader applies it")
        index = await leader.snapshot()
        assert leader.status().first_index == index + 1
        cluster.heal()
        error = await outcome(proposing)
        assert isinstance(error, aioraft.AppliedWithoutResultError)
        assert error.index <= index
        assert error.outcome is aioraft.Outcome.APPLIED_WITHOUT_RESULT
        assert await follower.propose(b"1") == 3


def total(node: aioraft.Node[int]) -> int:
    machine = node.state_machine
    assert isinstance(machine, Counting)
    return machine.total


LOG_MIB = 256 + 2 * 64
"""Files of 64 MiB, of which those that hold nothing needed are removed once all have 256 MiB; and the next one."""


@pytest.mark.asyncio
async def test_the_data_directory_stays_bounded(tmp_path: pathlib.Path, members: dict[int, str]) -> None:
    """`AIORAFT_LOAD_ENTRIES=300000` for a long one; whatever their number, they have 600 MiB or more."""
    entries = int(os.environ.get("AIORAFT_LOAD_ENTRIES", "10000"))
    entry_bytes = max(3000, (600 << 20) // entries)
    chance = random.Random(1)
    async with node(tmp_path, members, Length(), snapshot_entries=1000, snapshot_trail=100) as running:
        while await running.propose(b"") < entries:
            # What can be compressed would take little.
            await running.propose_many([chance.randbytes(entry_bytes) for _ in range(200)], timeout=None)
            status = running.status()
            assert status.log_bytes <= LOG_MIB << 20
            assert status.last_index - status.first_index < 10_000
        assert bytes_in(tmp_path) <= LOG_MIB << 20
        await until(lambda: len(list((tmp_path / "snapshots").iterdir())) == 1, "one snapshot is left")


class Length(aioraft.StateMachine[int]):
    """How many entries it has applied."""

    def __init__(self) -> None:
        self.length = 0

    def apply(self, entry: aioraft.Entry) -> int:
        self.length += 1
        return self.length

    def snapshot(self) -> bytes:
        return str(self.length).encode()

    def restore(self, data: bytes) -> None:
        self.length = int(data)


def bytes_in(folder: pathlib.Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
