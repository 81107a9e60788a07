"""Snapshots of three real processes under load, and what kills, frozen leaders and slow transfers do to them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import pathlib
import random
import signal
from typing import Any

import pytest

from counting_node import ACKNOWLEDGED, WITHOUT_RESULT
from processes import DEADLINE_S, HERE, Process, Processes, make_random, three_of_kind
from snapshot_node import CAPTURING, RESTORED, RESTORING, WRITING
from waiting import until

pytestmark = pytest.mark.asyncio

IN_FLIGHT = 8
OFTEN = {"snapshot_entries": 300, "snapshot_trail": 50}
MIB = 1 << 20
SLOW = {"snapshot_rate": MIB}
"""With a ballast of a few MiB a transfer takes seconds: long enough to be met on its way."""


class Snapshotting(Processes):
    """Three processes whose state machines have snapshots."""

    program = HERE / "snapshot_node.py"
    succeeded = (ACKNOWLEDGED, WITHOUT_RESULT)

    def others(self, *but: Process) -> list[Process]:
        return [process for process in self.all if process not in but]

    async def load(self, processes: list[Process] | None = None) -> None:
        await self.ask(self.all if processes is None else processes, "load", in_flight=IN_FLIGHT)

    async def status(self, process: Process) -> dict[str, Any]:
        status: dict[str, Any] = await process.ask("status")
        return status

    async def pass_by(self, late: Process, index: int) -> None:
        """Have the others compact their logs beyond `index`, so that `late` cannot do without a snapshot."""
        others = self.others(late)
        while True:
            for process in others:
                if (await self.status(process))["snapshot_index"] <= index:
                    await process.ask("snapshot")
            statuses = [await self.status(process) for process in others]
            if all(status["first_index"] > index + 1 for status in statuses):
                return
            await self.more(others, 50)

    async def assert_all_is_well(self) -> None:
        """Nothing is lost, doubled, or left over."""
        await self.stop_load()
        await self.assert_counted_once()
        await self.assert_nothing_left()

    async def assert_nothing_left(self) -> None:
        """Each has the file of one snapshot, the newest, and no other."""
        for index, process in zip(await self.ask(self.all, "snapshot"), self.all, strict=True):
            is_alone = functools.partial(has_only_file, process, index)
            await until(is_alone, f"{files(process)} to be that of {index} only")


def files(process: Process) -> list[pathlib.Path]:
    return sorted((process.data_dir / "snapshots").iterdir())


def has_only_file(process: Process, index: int) -> bool:
    names = [file.name for file in files(process)]
    return len(names) == 1 and names[0].endswith(".snapshot") and int(names[0].split("-")[1], 16) == index


def received_bytes(process: Process) -> int:
    """How much of a snapshot is here that is still being received."""
    received = [file for file in files(process) if file.suffix == ".part" and file.name.count("-") == 4]
    return sum(file.stat().st_size for file in received)


@pytest.fixture
def chance() -> random.Random:
    return make_random()


def often(
    chance: random.Random, folder: pathlib.Path, **settings: Any
) -> contextlib.AbstractAsyncContextManager[Snapshotting]:
    return three_of_kind(Snapshotting, folder, chance.randrange(10**9), **OFTEN | settings)


async def lag(processes: Snapshotting, late: Process) -> int:
    """Kill `late`, and let the others compact beyond what it has; return what it had."""
    others = processes.others(late)
    last: int = (await processes.status(others[0]))["last_index"]
    await late.kill()
    # What it has may be a little more than what another had.
    await processes.more(others, 100)
    await processes.pass_by(late, last + 100 * IN_FLIGHT)
    return last


# The ordinary course


async def test_one_that_was_down_gets_the_snapshot_and_what_follows(
    tmp_path: pathlib.Path, chance: random.Random
) -> None:
    async with often(chance, tmp_path) as processes:
        await processes.load()
        await processes.more(processes.all, chance.randrange(1, 200))
        late = chance.choice(processes.all)
        last = await lag(processes, late)

        await late.start()
        await late.ask("ready")
        await processes.load([late])
        await processes.more(processes.all, 200)
        assert late.stages.count(RESTORED) >= 1
        report = await late.ask("report")
        assert report["restored_index"] > last
        await processes.assert_all_is_well()


async def test_a_restart_applies_what_follows_the_snapshot_only(tmp_path: pathlib.Path, chance: random.Random) -> None:
    async with three_of_kind(Snapshotting, tmp_path, chance.randrange(10**9), snapshot_trail=10) as processes:
        one = chance.choice(processes.all)
        await one.ask("propose", count=500)
        index = await one.ask("snapshot")
        status = await processes.status(one)
        assert status["snapshot_index"] == index
        assert status["snapshot_bytes"] == files(one)[0].stat().st_size
        assert status["first_index"] == index - 9
        follows = chance.randrange(1, 100)
        await one.ask("propose", count=follows)
        await one.kill()
        await processes.start()
        report = await one.ask("report")
        assert (report["restored_index"], report["applied_here"]) == (index, follows)
        assert (await processes.status(one))["snapshot_index"] == index
        await processes.assert_counted_once()
        # The others never took one, and have applied all of it.
        for other in processes.others(one):
            assert (await other.ask("report"))["applied_here"] == 500 + follows
            assert (await processes.status(other))["first_index"] == 2


async def test_a_reader_that_was_passed_goes_on_where_it_can(tmp_path: pathlib.Path, chance: random.Random) -> None:
    async with often(chance, tmp_path) as processes:
        await processes.load()
        await processes.more(processes.all, 300)
        late = chance.choice(processes.all)
        await lag(processes, late)
        await late.start()
        await late.ask("ready")
        await processes.stop_load()
        through = max(report["last_index"] for report in await processes.ask(processes.all, "report"))
        for process in processes.all:
            read = await process.ask("read", after=0, through=through)
            assert len(read["restarts"]) == 1, read  # one step leads to what is there
        # Those who start at the same index read the same, whether they were there all the time or restored it.
        begin = max([(await processes.status(process))["first_index"] for process in processes.all]) - 1
        reads = await processes.ask(processes.all, "read", after=begin, through=through)
        assert [read["restarts"] for read in reads] == [[], [], []]
        assert len({read["sequence"] for read in reads}) == 1, reads
        await processes.assert_counted_once()


# Killed


@pytest.mark.parametrize("stage", [CAPTURING, WRITING])
@pytest.mark.parametrize("role", ["leader", "follower"])
async def test_whoever_takes_a_snapshot_is_killed(
    tmp_path: pathlib.Path, chance: random.Random, role: str, stage: str
) -> None:
    async with often(chance, tmp_path, snapshot_entries=None) as processes:
        await processes.ask(processes.all, "load ballast", bytes_each=2 * MIB)
        await processes.load()
        await processes.more(processes.all, chance.randrange(1, 200))
        leader = await processes.leader()
        taker = leader if role == "leader" else chance.choice(processes.others(leader))
        await taker.ask("hold", stage=stage)
        asked = taker.asking("snapshot")
        await processes.until(lambda: stage in taker.stages, f"{stage} at node {taker.number}")
        await processes.more(processes.others(taker), 100)
        await taker.kill()
        assert asked.exception() is not None
        if stage == WRITING:
            assert [file.suffix for file in files(taker)] == [".part"]
        await processes.more(processes.running, 100)
        await processes.start()
        assert files(taker) == []
        await processes.load([taker])
        await processes.more(processes.all, 100)
        await processes.assert_all_is_well()


@pytest.mark.parametrize("victim", ["sender", "receiver", "both"])
async def test_a_snapshot_is_under_way_when_one_end_is_killed(
    tmp_path: pathlib.Path, chance: random.Random, victim: str
) -> None:
    async with often(chance, tmp_path, **SLOW) as processes:
        await processes.ask(processes.all, "load ballast", bytes_each=3 * MIB)
        await processes.load()
        await processes.more(processes.all, 100)
        leader = await processes.leader()
        late = chance.choice(processes.others(leader))
        await lag(processes, late)
        await late.start()
        part = chance.randrange(MIB // 4, 2 * MIB)
        await until(lambda: received_bytes(late) >= part, f"{part} bytes at node {late.number}")
        victims = {"sender": [leader], "receiver": [late], "both": [leader, late]}[victim]
        for process in victims:
            process.send_kill()
        await asyncio.gather(*(process.killed() for process in victims))
        await processes.start()
        await processes.load([*victims, *({late} - set(victims))])
        await processes.more(processes.all, 100)
        assert RESTORED in late.stages
        await processes.assert_all_is_well()


async def test_whoever_installs_a_snapshot_is_killed(tmp_path: pathlib.Path, chance: random.Random) -> None:
    async with often(chance, tmp_path, **SLOW) as processes:
        await processes.ask(processes.all, "load ballast", bytes_each=MIB)
        await processes.load()
        await processes.more(processes.all, 100)
        late = chance.choice(processes.all)
        last = await lag(processes, late)
        await late.start()
        await late.ask("hold", stage=RESTORING)
        await processes.until(lambda: RESTORING in late.stages, f"node {late.number} to restore")
        # It is installed, and the application does not have it yet.
        await late.kill()
        await processes.more(processes.running, 100)
        await processes.start()
        assert late.stages.count(RESTORED) >= 1
        assert (await late.ask("report"))["restored_index"] > last
        await processes.load([late])
        await processes.more(processes.all, 100)
        await processes.assert_all_is_well()


async def test_whoever_receives_snapshots_is_killed_at_random_moments(
    tmp_path: pathlib.Path, chance: random.Random
) -> None:
    async with often(chance, tmp_path, snapshot_trail=0) as processes:
        await processes.ask(processes.all, "load ballast", bytes_each=MIB)
        await processes.load()
        await processes.more(processes.all, 100)
        late = chance.choice(processes.all)
        for _ in range(5):
            await lag(processes, late)
            await late.start()
            # No moment to wait for, but any: in about this time it hears of the leader, receives, records and restores.
            await asyncio.sleep(chance.uniform(0, 1.0))
        await late.kill()
        await processes.start()
        await processes.load([late])
        await processes.more(processes.all, 100)
        await processes.assert_all_is_well()


# Held up


async def test_leaders_change_while_a_snapshot_is_under_way(tmp_path: pathlib.Path, chance: random.Random) -> None:
    async with often(chance, tmp_path, **SLOW) as processes:
        await processes.ask(processes.all, "load ballast", bytes_each=3 * MIB)
        await processes.load()
        await processes.more(processes.all, 100)
        leader = await processes.leader()
        late = chance.choice(processes.others(leader))
        await lag(processes, late)
        await late.start()
        await until(lambda: received_bytes(late) >= MIB // 2, f"half a MiB at node {late.number}")
        term = leader.leaderships[-1].term
        leader.send_signal(signal.SIGSTOP)
        try:
            # Who lags cannot lead, and votes all the same.
            [other] = processes.others(leader, late)
            await processes.until(
                lambda: other.leaderships[-1].leader == other.number and other.leaderships[-1].term > term,
                f"node {other.number} to lead",
            )
        finally:
            leader.send_signal(signal.SIGCONT)
        await late.ask("ready")
        assert RESTORED in late.stages
        await processes.load([late])
        await processes.more(processes.all, 100)
        await processes.assert_all_is_well()


async def test_the_entries_and_files_that_are_kept_stay_few(tmp_path: pathlib.Path, chance: random.Random) -> None:
    async with often(chance, tmp_path) as processes:
        await processes.load()
        most = [0, 0]
        async with asyncio.timeout(4 * DEADLINE_S):
            for _ in range(10):
                await processes.more(processes.all, 500)
                for process in processes.all:
                    status = await processes.status(process)
                    most[0] = max(most[0], status["last_index"] - status["first_index"])
                    most[1] = max(most[1], len(files(process)))
        # What came while one was taken and its record written is on top.
        assert most[0] < 3 * sum(OFTEN.values()), most
        assert most[1] <= 3, most
        await processes.assert_all_is_well()
