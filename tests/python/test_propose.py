"""Node.propose and propose_many: results, errors, back-pressure."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import aioraft
from aioraft.testing import Cluster
from machines import Adder, BatchAdder
from stub_core import StubCore, settle

pytestmark = pytest.mark.asyncio


def node_over(core: StubCore) -> aioraft.Node[int]:
    node = aioraft.Node(id=1, members={1: "127.0.0.1:7401"}, data_dir=None, state_machine=Adder())
    node._running = core.as_core()
    return node


async def test_a_full_node_makes_propose_wait() -> None:
    core = StubCore()
    core.full = True
    node = node_over(core)
    waiting = [asyncio.create_task(node.propose(b"1")), asyncio.create_task(node.propose_many([b"2"]))]
    await settle()
    assert core.proposed == []
    core.make_room()
    await asyncio.gather(*waiting)
    assert sorted(core.proposed) == [b"1", b"2"]


async def test_no_room_in_time_means_not_committed() -> None:
    core = StubCore()
    core.full = True
    node = node_over(core)
    with pytest.raises(aioraft.ProposalTimeoutError, match=r"waited 0\.01 s for room"):
        await node.propose(b"1", timeout=0.01)
    with pytest.raises(aioraft.ProposalTimeoutError):
        await node.propose_many([b"1", b"2"], timeout=0.01, return_exceptions=True)
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.01):
            await node.propose(b"1", timeout=None)
    assert not isinstance(caught.value, aioraft.RaftError)
    assert core.proposed == []


async def test_a_long_list_waits_for_room_part_by_part() -> None:
    core = StubCore()
    node = node_over(core)
    core.fills_up = True
    waiting = asyncio.create_task(node.propose_many([b"1"] * 3000, timeout=0.05, return_exceptions=True))
    await settle()
    assert len(core.proposed) == 1024
    core.make_room()
    await settle()
    assert len(core.proposed) == 2048
    results = await waiting
    assert results[:2048] == list(range(1, 2049))
    assert {type(one) for one in results[2048:]} == {aioraft.ProposalTimeoutError}
    assert len(results) == 3000


async def test_a_bad_item_refuses_the_whole_list() -> None:
    core = StubCore()
    node = node_over(core)
    with pytest.raises(aioraft.ProposalTooLargeError, match="nothing was proposed"):
        await node.propose_many([b"1"] * 2000 + [bytes(9 << 20)])
    for count in (3, 2000):
        with pytest.raises(TypeError, match=rf"items\[{count}\] = 'text' is not bytes.*nothing was proposed"):
            await node.propose_many([b"1"] * count + ["text"])  # type: ignore[list-item]
    assert core.proposed == []


@pytest.mark.parametrize("single", [b"abc", bytearray(b"abc"), memoryview(b"abc"), "abc", 1, None], ids=repr)
async def test_a_single_command_is_not_many(single: Any) -> None:
    core = StubCore()
    with pytest.raises(TypeError, match=r"^propose_many\(items = .*: it takes several commands, such as"):
        await node_over(core).propose_many(single)
    assert core.proposed == []


async def test_many_keep_their_order_and_say_which_failed() -> None:
    core = StubCore()
    node = node_over(core)
    assert await node.propose_many([]) == []
    many = [str(number).encode() for number in range(5000)]
    assert await node.propose_many(many) == list(range(1, 5001))
    results = await node.propose_many([b"1", b"!2", b"!3"], return_exceptions=True)
    assert results[0] == 5001
    assert [str(one) for one in results[1:]] == ["b'!2'", "b'!3'"]
    with pytest.raises(aioraft.NotCommittedError, match="!2") as caught:
        await node.propose_many([b"1", b"!2", b"!3"])
    assert caught.value.__notes__ == ["2 of 3 items failed; return_exceptions=True shows each"]


@pytest.mark.parametrize("machine", [Adder, BatchAdder])
async def test_results_come_from_the_asking_nodes_own_state(machine: type[Adder]) -> None:
    async with Cluster(3, machine) as cluster:
        totals = [await node.propose(b"1") for node in cluster.nodes for _ in range(5)]
        assert totals == list(range(1, 16))
        assert sorted(await cluster.nodes[1].propose_many([b"1"] * 10)) == list(range(16, 26))
        await cluster.wait_agreement()
        assert [node.state_machine.total for node in cluster.nodes if isinstance(node.state_machine, Adder)] == [25] * 3


async def test_what_apply_raises_reaches_the_proposer() -> None:
    async with Cluster(1, Adder) as cluster:
        (node,) = cluster.nodes
        with pytest.raises(aioraft.ApplyError) as caught:
            await node.propose(b"fail")
        assert caught.value.outcome is aioraft.Outcome.APPLIED
        assert isinstance(caught.value.__cause__, ValueError)
        assert caught.value.index > 0
        assert await node.propose(b"2") == 2


async def test_what_is_too_long_is_refused() -> None:
    config = aioraft.Config(max_entry_bytes=1024, election_timeout=0.3, heartbeat_interval=0.03)
    async with Cluster(1, Adder, config=config) as cluster:
        with pytest.raises(aioraft.ProposalTooLargeError):
            await cluster.nodes[0].propose(b"1" * 1025)


async def test_every_kind_of_bytes_is_taken() -> None:
    async with Cluster(1, Adder) as cluster:
        (node,) = cluster.nodes
        kinds: list[aioraft.Data] = [b"1", bytearray(b"1"), memoryview(b"1")]
        for total, data in enumerate(kinds, start=1):
            assert await node.propose(data) == total
        integers = memoryview(b"1234").cast("I")
        for wrong, says in (("1", "not str: encode it first"), (1, "not int"), (integers, r"\.cast")):
            with pytest.raises(
                TypeError, match=rf"a proposal is bytes, a bytearray or a memoryview of bytes, .*{says}"
            ):
                await node.propose(wrong)  # type: ignore[arg-type]
