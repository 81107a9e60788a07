"""aioraft.Commits: a cursor that a cancelled wait does not move."""

from __future__ import annotations

import asyncio
import gc
import os
import pathlib
import sys

import pytest

import aioraft
from aioraft.testing import Cluster
from machines import Adder
from stub_core import StubCore, settle

pytestmark = pytest.mark.asyncio


async def test_a_wait_cancelled_before_and_after_the_entry_arrives_loses_nothing() -> None:
    core = StubCore()
    commits = aioraft.Commits(core.as_core(), 0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await anext(commits)
    core.apply(b"1")
    core.read_gate = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(anext(commits))
    await settle()
    core.read_gate.set_result(None)
    waiting.cancel()  # the entry was on its way
    with pytest.raises(asyncio.CancelledError):
        await waiting
    core.read_gate = None
    assert (await anext(commits)).data == b"1"


async def test_entries_and_batches_share_the_cursor() -> None:
    core = StubCore()
    core.apply(b"1", b"2", b"3")
    commits = aioraft.Commits(core.as_core(), 0)
    assert (await anext(commits)).data == b"1"
    assert commits.position == 1
    assert [entry.data for entry in await anext(commits.batches())] == [b"2", b"3"]
    assert commits.position == 3
    core.apply(b"4")
    assert (await anext(commits)).data == b"4"
    resumed = aioraft.Commits(core.as_core(), 2)
    assert [entry.data for entry in await anext(resumed.batches())] == [b"3", b"4"]


async def test_one_task_at_a_time() -> None:
    commits = aioraft.Commits(StubCore().as_core(), 0)
    waiting = asyncio.create_task(anext(commits))
    await settle()
    with pytest.raises(aioraft.ReentrantCallError, match="make one for each"):
        await anext(commits)
    waiting.cancel()


async def test_it_ends_when_the_node_closes_and_raises_when_it_has_failed() -> None:
    core = StubCore()
    waiting = asyncio.create_task(_read_all(aioraft.Commits(core.as_core(), 0)))
    await settle()
    core.end(aioraft.NodeClosedError("closed", False))
    assert await waiting == []

    core = StubCore()
    waiting = asyncio.create_task(_read_all(aioraft.Commits(core.as_core(), 0)))
    await settle()
    core.end(aioraft.FatalError("the disk failed"))
    with pytest.raises(aioraft.FatalError, match="disk"):
        await waiting


async def _read_all(commits: aioraft.Commits) -> list[bytes]:
    return [entry.data async for entry in commits]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_a_reader_that_stops_costs_nothing(tmp_path: pathlib.Path) -> None:
    config = aioraft.Config(entry_cache_bytes=64 * 1024, max_unapplied_bytes=64 * 1024)
    count, size = 20_000, 1000

    async def fill(node: aioraft.Node[None]) -> None:
        for _ in range(0, count, 500):
            await node.propose_many([bytes(size)] * 500)

    def resident_bytes() -> int:
        gc.collect()
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async with Cluster(1, Forgetful, config=config, data_dir=tmp_path) as cluster:
        (node,) = cluster.nodes
        await fill(node)  # so that every buffer has its size
        readers = [node.commits() for _ in range(100)]
        await node.propose(b"first")
        for reader in readers:
            assert (await anext(reader)).data == b"first"
        before = resident_bytes()
        await fill(node)
        assert (
            resident_bytes() - before < count * size / 4
        )  # the log's index is a twentieth; one reader's queue were all
        for reader in readers:
            assert (await anext(reader)).data == bytes(size)


class Forgetful(aioraft.StateMachine[None]):
    def apply(self, entry: aioraft.Entry) -> None: ...


async def test_commits_of_a_cluster() -> None:
    async with Cluster(3, Adder) as cluster:
        first, second, _ = cluster.nodes
        for number in (b"1", b"2"):
            await first.propose(number)
        late = first.commits()
        await second.propose(b"3")
        commits = first.commits(after=0)
        seen = [await anext(commits) for _ in range(3)]
        assert [entry.data for entry in seen] == [b"1", b"2", b"3"]
        assert [entry.index for entry in seen] == sorted({entry.index for entry in seen})
        assert (await anext(late)).data == b"3"
        again = second.commits(after=seen[0].index)
        assert [await anext(again) for _ in range(2)] == seen[1:]
        assert seen[0].timestamp <= seen[1].timestamp <= seen[2].timestamp
        for bad in (-1, 1.5, "0", True):
            with pytest.raises(aioraft.ConfigError, match="after="):
                first.commits(after=bad)  # type: ignore[arg-type]
