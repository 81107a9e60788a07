"""Node: started once, closed once, whoever asks and whatever is cancelled."""

from __future__ import annotations

import asyncio
import logging
import pathlib
import socket
from collections.abc import Awaitable, Callable

import pytest

import aioraft
from aioraft.testing import TEST_CONFIG, Cluster
from machines import Adder
from processes import reserved_addresses
from waiting import until

pytestmark = pytest.mark.asyncio


def single(
    data_dir: pathlib.Path | None = None,
    *,
    listen: str = "127.0.0.1:0",
    config: aioraft.Config = TEST_CONFIG,
    machine: Adder | None = None,
) -> aioraft.Node[int]:
    return aioraft.Node(
        id=1,
        members={1: "127.0.0.1:7401"},
        data_dir=data_dir,
        state_machine=machine or Adder(),
        listen=listen,
        config=config,
    )


async def test_before_and_after_its_life() -> None:
    node = single()
    with pytest.raises(aioraft.NodeClosedError, match="not started"):
        await node.propose(b"1")
    for call in (node.status, node.commits, node.leadership, node.leading):
        with pytest.raises(aioraft.NodeClosedError, match="not started"):
            call()
    assert "not started" in repr(node)
    async with node:
        assert node.address.startswith("127.0.0.1:")
        with pytest.raises(aioraft.RaftError, match="started already"):
            await node.start()
    with pytest.raises(aioraft.NodeClosedError) as caught:
        await node.propose(b"1")
    assert caught.value.outcome is aioraft.Outcome.NOT_COMMITTED
    waits: list[Callable[[], Awaitable[object]]] = [
        node.ready,
        node.read_barrier,
        node.wait_for_leader,
        lambda: node.propose_many([b"1"]),
    ]
    for wait in waits:
        with pytest.raises(aioraft.NodeClosedError):
            await wait()
    for call in (node.commits, node.leadership, node.leading):
        with pytest.raises(aioraft.NodeClosedError, match="closed"):
            call()
    assert "closed" in repr(node)
    status = node.status()
    assert (status.id, status.role, status.leader) == (1, "closed", None)
    with pytest.raises(aioraft.NodeClosedError, match="make a new Node"):
        await node.start()


async def test_a_reader_whose_node_closes_ends_and_later_ones_are_refused() -> None:
    node = single()
    await node.start()
    await node.propose(b"1")

    async def read() -> list[int]:
        return [entry.index async for entry in commits]

    commits = node.commits(after=0)
    reading = asyncio.create_task(read())
    waiting = asyncio.create_task(node.wait_stopped())
    while commits.position == 0:
        await asyncio.sleep(0)
    closing = asyncio.create_task(node.aclose())
    await asyncio.sleep(0)
    with pytest.raises(aioraft.NodeClosedError):
        node.commits()
    await closing
    assert len(await reading) == 1
    with pytest.raises(StopAsyncIteration):
        await anext(commits)
    await waiting
    await node.wait_stopped()  # also afterwards


async def test_a_service_notices_that_its_node_has_stopped() -> None:
    class Failing(Adder):
        def apply(self, entry: aioraft.Entry) -> int:
            raise OSError("no space left")

    node = single(machine=Failing())
    with pytest.raises(aioraft.NodeClosedError, match="not started"):
        await node.wait_stopped()
    reading: list[asyncio.Task[object]] = []
    with pytest.raises(ExceptionGroup) as caught:
        async with node, asyncio.TaskGroup() as tasks:
            tasks.create_task(node.wait_stopped())
            reading.append(asyncio.ensure_future(anext(node.commits())))
            unheard = asyncio.create_task(node.propose(b"1"))
            await asyncio.Event().wait()
    (fatal,) = caught.value.exceptions
    assert isinstance(fatal, aioraft.FatalError)
    assert isinstance(fatal.__cause__, OSError)
    for task in (unheard, *reading):
        with pytest.raises(aioraft.FatalError, match="no space left"):
            await task
    for call in (node.commits, node.leadership, node.leading):
        with pytest.raises(aioraft.FatalError, match="no space left") as refused:
            call()
        assert isinstance(refused.value.__cause__, OSError)
    with pytest.raises(aioraft.FatalError, match="no space left"):
        await node.wait_stopped()
    assert "stopped" in repr(node)
    status = node.status()
    assert (status.role, status.leader) == ("stopped", None)


async def test_an_entry_that_stopped_a_node_is_applied_after_its_restart(tmp_path: pathlib.Path) -> None:
    class FullDisk(Adder):
        def apply(self, entry: aioraft.Entry) -> int:
            if entry.data == b"2":
                raise ExceptionGroup("while it wrote", [OSError("no space left")])
            return super().apply(entry)

    async with single(tmp_path, machine=FullDisk()) as node:
        assert await node.propose(b"1") == 1
        with pytest.raises(aioraft.FatalError) as caught:
            await node.propose(b"2")
        assert caught.value.outcome is aioraft.Outcome.UNKNOWN
        assert node.state_machine.total == 1  # type: ignore[attr-defined]
        for call in (node.read_barrier, node.ready, node.wait_for_leader):
            with pytest.raises(aioraft.FatalError) as caught:
                await call()
            assert caught.value.outcome is aioraft.Outcome.NOT_COMMITTED, call
        for begin in (node.commits, node.leadership, node.leading):
            with pytest.raises(aioraft.FatalError) as caught:
                begin()
            assert caught.value.outcome is aioraft.Outcome.NOT_COMMITTED, begin
    async with single(tmp_path) as node:
        assert await node.propose(b"3") == 6


async def test_what_stops_one_replica_stops_no_other() -> None:
    class Unlucky(Adder):
        made = 0

        def __init__(self) -> None:
            super().__init__()
            Unlucky.made += 1
            self.is_unlucky = Unlucky.made == 1

        def apply(self, entry: aioraft.Entry) -> int:
            if self.is_unlucky and entry.data == b"2":
                raise MemoryError
            return super().apply(entry)

    async with Cluster(3, Unlucky) as cluster:
        unlucky, *others = cluster.nodes
        assert await others[0].propose(b"2") == 2
        with pytest.raises(aioraft.FatalError, match="MemoryError"):
            await unlucky.wait_stopped()
        assert [await other.propose(b"1") for other in others] == [3, 4]


async def test_a_cancelled_wait_for_the_end_ends_nothing() -> None:
    async with single() as node:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(node.wait_stopped(), 0.01)
        assert await node.propose(b"1") == 1


async def test_a_directory_serves_one_node_at_a_time(tmp_path: pathlib.Path) -> None:
    async with single(tmp_path) as node:
        second = single(tmp_path)
        with pytest.raises(aioraft.ConfigError, match="another node") as caught:
            await second.start()
        assert str(tmp_path) in str(caught.value)
        assert "closed" in repr(second)
        assert await node.propose(b"1") == 1
    async with single(tmp_path) as node:
        assert await node.propose(b"1") == 2


async def test_a_state_machine_serves_one_node() -> None:
    machine = Adder()
    single(machine=machine)
    with pytest.raises(aioraft.ConfigError, match="belongs to another node"):
        single(machine=machine)


async def test_closing_is_idempotent_and_may_be_concurrent() -> None:
    node = single()
    await node.aclose()  # never started
    node = single()
    await node.start()
    await asyncio.gather(node.aclose(), node.aclose())
    await node.aclose()


async def test_a_cancelled_close_closes() -> None:
    node = single()
    await node.start()
    closing = asyncio.create_task(node.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await node.aclose()


@pytest.mark.parametrize("steps", range(6))
async def test_a_cancelled_start_leaves_nothing_behind(steps: int, tmp_path: pathlib.Path) -> None:
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{reserved.getsockname()[1]}"
        starting = asyncio.create_task(single(tmp_path, listen=listen).start())
        for _ in range(steps):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
        if not starting.cancelled():
            pytest.skip("it was started by then")
        async with single(tmp_path, listen=listen) as node:  # neither the port nor the directory is held
            await node.ready(timeout=10)


async def test_a_failed_start_may_be_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        node = single(listen=f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(aioraft.ConfigError, match="cannot be bound"):
            await node.start()
    async with node:
        await node.ready(timeout=10)


async def test_memory_and_insecurity_are_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aioraft._announce._has_warned_of_memory", False)
    config = aioraft.Config(election_timeout=0.3, heartbeat_interval=0.03, insecure=True)
    with caplog.at_level(logging.WARNING, logger="aioraft.node"):
        async with single(config=config):
            pass
    said = [record.message for record in caplog.records if record.name == "aioraft.node"]
    assert any("keeps its log in memory" in message for message in said)
    assert any("without TLS (insecure=True)" in message for message in said)


async def test_memory_is_warned_of_once_in_a_process_and_never_in_a_test_cluster(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aioraft._announce._has_warned_of_memory", False)
    caplog.set_level(logging.INFO, logger="aioraft.node")

    def levels() -> list[str]:
        said = [record.levelname for record in caplog.records if "keeps its log in memory" in record.message]
        caplog.clear()
        return said

    async with Cluster(2, Adder):
        assert levels() == ["INFO", "INFO"]
    async with single(), single():
        assert levels() == ["WARNING", "INFO"]


async def test_a_node_in_memory_cannot_come_back(caplog: pytest.LogCaptureFixture) -> None:
    with reserved_addresses(3) as members:

        def make(number: int) -> aioraft.Node[int]:
            return aioraft.Node(id=number, members=members, data_dir=None, state_machine=Adder(), config=TEST_CONFIG)

        async with make(1) as first, make(2) as second:
            third = make(3)
            async with third:
                assert await third.propose(b"1") == 1
            async with make(3) as again:
                refused = "a node in memory (data_dir=None), cannot come back under its old id"
                await until(lambda: refused in caplog.text, "the refusal to be logged")
                with pytest.raises(aioraft.ReadTimeoutError):
                    await again.ready(timeout=0.2)
            assert await first.propose(b"1", timeout=10) == 2
            assert await second.propose(b"1", timeout=10) == 3


async def test_a_state_machine_whose_node_is_closed_is_used_up() -> None:
    machine = Adder()
    async with single(machine=machine) as node:
        await node.propose(b"1")
    with pytest.raises(aioraft.ConfigError, match="make a new instance for each node"):
        single(machine=machine)


async def test_status_is_typed() -> None:
    async with single() as node:
        await node.propose(b"5")
        index = await node.read_barrier()
        status = node.status()
        assert isinstance(status, aioraft.Status)
        assert (status.id, status.role, status.leader, status.peers) == (1, "leader", 1, ())
        assert status.python_applied >= index > 0


async def test_what_was_applied_is_there_after_a_restart(tmp_path: pathlib.Path) -> None:
    for total in (1, 2, 3):
        async with single(tmp_path) as node:
            assert await node.propose(b"1") == total
