"""Deadlines: what passes, when, and what is said of it; and what is no deadline."""

from __future__ import annotations

import asyncio
import inspect
import pathlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import aioraft
from aioraft.testing import Cluster
from documents import blocks, check_types
from machines import Adder

pytestmark = pytest.mark.asyncio

A_MOMENT_S = 5.0  # a machine that is busy
CALLS: dict[str, tuple[Callable[..., Awaitable[Any]], type[aioraft.RaftError]]] = {
    "ready": (aioraft.Node.ready, aioraft.ReadTimeoutError),
    "wait_for_leader": (aioraft.Node.wait_for_leader, aioraft.ReadTimeoutError),
    "read_barrier": (aioraft.Node.read_barrier, aioraft.ReadTimeoutError),
    "propose": (lambda node, **given: node.propose(b"1", **given), aioraft.ProposalTimeoutError),
    "propose_many": (lambda node, **given: node.propose_many([b"1"], **given), aioraft.ProposalTimeoutError),
}
WITH_DEFAULT = [name for name, _ in CALLS.items() if name not in ("ready", "wait_for_leader")]


def leaderless(**settings: Any) -> aioraft.Node[int]:
    """A node whose two peers are not there."""
    return aioraft.Node(
        id=1,
        members={1: "127.0.0.1:7401", 2: "127.0.0.1:7402", 3: "127.0.0.1:7403"},
        data_dir=None,
        state_machine=Adder(),
        listen="127.0.0.1:0",
        cluster="nobody else",
        config=aioraft.Config(close_timeout=0.01, **settings),
    )


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_ends_at_its_deadline(name: str) -> None:
    call, error = CALLS[name]
    async with leaderless() as node:
        for timeout in (0, 0.05):
            begun = time.monotonic()
            with pytest.raises(error) as caught:
                await call(node, timeout=timeout)
            assert timeout <= time.monotonic() - begun < timeout + A_MOMENT_S
            assert isinstance(caught.value, TimeoutError)
            assert caught.value.outcome in (None, aioraft.Outcome.NOT_COMMITTED)


@pytest.mark.parametrize("name", CALLS)
async def test_none_waits_for_ever(name: str) -> None:
    call, _ = CALLS[name]
    async with leaderless(propose_timeout=0.01, read_timeout=0.01) as node:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.1):
                await call(node, timeout=None)
        assert not isinstance(caught.value, aioraft.RaftError)


@pytest.mark.parametrize("name", WITH_DEFAULT)
async def test_the_default_is_what_config_says(name: str) -> None:
    call, error = CALLS[name]
    async with leaderless(propose_timeout=0.02, read_timeout=0.02) as node:
        for given in ({}, {"timeout": aioraft.DEFAULT_TIMEOUT}):
            begun = time.monotonic()
            with pytest.raises(error):
                await call(node, **given)
            assert 0.02 <= time.monotonic() - begun < A_MOMENT_S


async def test_the_default_can_be_passed_on() -> None:
    for call in (aioraft.Node.propose, aioraft.Node.propose_many, aioraft.Node.read_barrier):
        assert inspect.signature(call).parameters["timeout"].default is aioraft.DEFAULT_TIMEOUT
    assert repr(aioraft.DEFAULT_TIMEOUT) == "aioraft.DEFAULT_TIMEOUT"

    async def add(node: aioraft.Node[int], timeout: aioraft.Timeout = aioraft.DEFAULT_TIMEOUT) -> int:
        return await node.propose(b"1", timeout=timeout)

    async with Cluster(1, Adder) as cluster:
        assert [await add(cluster.nodes[0]), await add(cluster.nodes[0], None)] == [1, 2]


@pytest.mark.parametrize("bad", ["1", b"1", True, -1, -0.5, float("nan"), float("-inf"), -(10**400), [1]], ids=repr)
@pytest.mark.parametrize("name", CALLS)
async def test_what_is_no_number_of_seconds_is_refused(name: str, bad: Any) -> None:
    call, _ = CALLS[name]
    async with leaderless() as node:
        with pytest.raises(aioraft.ConfigError, match=r"^timeout = .*: it must be a number of seconds, 0 or more"):
            await call(node, timeout=bad)


@pytest.mark.parametrize("long", [float("inf"), 10**400, 1e300], ids=["inf", "10**400", "1e300"])
@pytest.mark.parametrize("name", CALLS)
async def test_as_long_as_one_likes(name: str, long: float) -> None:
    call, _ = CALLS[name]
    async with Cluster(1, Adder) as cluster:
        await call(cluster.nodes[0], timeout=long)


async def test_the_documented_function_passes_a_timeout_on(tmp_path: pathlib.Path) -> None:
    (program,) = blocks("docs/errors.md", "python")
    check_types(program, tmp_path)
    names: dict[str, Any] = {}
    exec(program, names)
    async with Cluster(1, Adder) as cluster:
        assert await names["put"](cluster.nodes[0], "1") == 1
        assert await names["put"](cluster.nodes[0], "1", timeout=10) == 2


async def test_a_known_leader_needs_no_time() -> None:
    async with Cluster(1, Adder) as cluster:
        leader = await cluster.leader()
        assert (await leader.wait_for_leader(timeout=0)).leader == leader.id
