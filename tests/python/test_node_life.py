"""Node: started once, closed once, whoever asks and whatever is cancelled."""

from __future__ import annotations

import asyncio
import logging
import pathlib
import socket

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
    with pytest.raises(aioraft.NodeClosedError, match="make a new Node"):
        await node.start()


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
