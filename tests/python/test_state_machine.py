"""aioraft.StateMachine: one instance, one node; plain methods."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from typing import Any

import pytest

import aioraft
from aioraft._state_machine import ask_durable, claim, has_batch, has_snapshot
from aioraft.testing import Cluster
from machines import Adder, BatchAdder


class Slotted(aioraft.StateMachine[None]):
    __slots__ = ("items",)

    def apply(self, entry: aioraft.Entry) -> None: ...


@dataclasses.dataclass(slots=True)
class Unhashable(aioraft.StateMachine[None]):
    total: int = 0

    def apply(self, entry: aioraft.Entry) -> None: ...


class AsyncApply(aioraft.StateMachine[Any]):
    async def apply(self, entry: aioraft.Entry) -> None: ...


@pytest.mark.parametrize("factory", [Adder, Slotted, Unhashable])
def test_a_used_instance_is_refused(factory: type[aioraft.StateMachine[Any]]) -> None:
    used, equal = factory(), factory()
    claim(used)
    with pytest.raises(aioraft.ConfigError, match="belongs to another node already"):
        claim(used)
    claim(equal)


def test_an_instance_is_not_kept_alive() -> None:
    machine = Adder()
    claim(machine)
    gone = weakref.ref(machine)
    del machine
    gc.collect()
    assert gone() is None


def test_async_methods_are_refused() -> None:
    with pytest.raises(aioraft.ConfigError, match=r"state_machine\.apply is async"):
        claim(AsyncApply())


class OneWay(Adder):
    def snapshot(self) -> bytes:
        return b""


class Lazy(OneWay):
    def restore(self, data: bytes) -> Any:
        yield data


class Durable(Adder):
    answer: Any = None

    def durable_applied(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_a_snapshot_needs_its_restore() -> None:
    with pytest.raises(aioraft.ConfigError, match=r"has snapshot\(\) and no restore\(\)"):
        claim(OneWay())
    with pytest.raises(aioraft.ConfigError, match="restore is a generator"):
        claim(Lazy())
    assert (has_snapshot(OneWay()), has_snapshot(Adder())) == (True, False)


def test_what_is_durable_is_the_place_of_an_entry() -> None:
    machine = Durable()
    for answer in (None, (1, 1), (7, 2)):
        machine.answer = answer
        assert ask_durable(machine) == answer
    for wrong in ((0, 0), (1, 0), (1,), [1, 1], 5, "11", (1, 2, 3), (True, 1), (1.0, 1), (2**64, 1)):
        machine.answer = wrong
        with pytest.raises(aioraft.ConfigError, match=r"durable_applied\(\) returned .* \(index, term\)"):
            ask_durable(machine)
    machine.answer = LookupError("no table")
    with pytest.raises(aioraft.FatalError, match="durable_applied raised LookupError") as raised:
        ask_durable(machine)
    assert raised.value.__cause__ is machine.answer


def test_a_state_machine_needs_apply() -> None:
    with pytest.raises(TypeError, match="apply"):
        aioraft.StateMachine()  # type: ignore[abstract]


def test_batches_are_an_override() -> None:
    assert not has_batch(Adder())
    assert has_batch(BatchAdder())


def test_it_is_tested_without_a_cluster() -> None:
    entry = aioraft.Entry(1, 1, b"5", timestamp=2.5)
    assert (entry.index, entry.term, entry.data, entry.timestamp) == (1, 1, b"5", 2.5)
    assert entry.timestamp_ns == 2_500_000_000
    assert Adder().apply(entry) == 5
    assert BatchAdder().apply_batch([entry, entry]) == [5, 10]


@pytest.mark.asyncio
async def test_an_entry_made_by_hand_is_as_good_as_a_replicas() -> None:
    async with Cluster(3, Adder) as cluster:
        await cluster.nodes[0].propose(b"5")
        await cluster.wait_agreement()
        replicas = [await anext(node.commits(after=0)) for node in cluster.nodes]
    entry = replicas[0]
    assert replicas == [entry] * 3
    by_hand = aioraft.Entry(entry.index, entry.term, b"5", wall_time=entry.wall_time, timestamp_ns=entry.timestamp_ns)
    assert by_hand == entry
    assert hash(by_hand) == hash(entry)
    assert Adder().apply(by_hand) == Adder().apply(entry) == 5
    for bad in ({"index": -1}, {"term": "1"}, {"data": "text"}, {"timestamp": -1.0}):
        arguments: dict[str, Any] = {"index": 1, "term": 1, "data": b""} | bad
        with pytest.raises((TypeError, ValueError, OverflowError)):
            aioraft.Entry(**arguments)
