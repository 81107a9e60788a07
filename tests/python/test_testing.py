"""aioraft.testing: the cluster, and its fixture under each mode of pytest-asyncio."""

from __future__ import annotations

import asyncio
import pathlib
from typing import Any

import pytest

import aioraft
from aioraft.testing import Cluster, Simulation
from aioraft.testing.plugin import RaftCluster
from machines import Adder

USER_TEST = """
    import aioraft

    class Adder(aioraft.StateMachine[int]):
        def __init__(self):
            self.total = 0

        def apply(self, entry):
            self.total += int(entry.data)
            return self.total

    {mark}
    async def test_adds(raft_cluster):
        async with raft_cluster(3, Adder) as cluster:
            await cluster.leader()
            for total, node in enumerate(cluster.nodes, start=1):
                assert await node.propose(b"1") == total
            await cluster.wait_agreement()
            assert [node.state_machine.total for node in cluster.nodes] == [3, 3, 3]
"""


@pytest.mark.parametrize(
    ("mode", "mark"), [("strict", "import pytest\n    @pytest.mark.asyncio"), ("auto", "")], ids=["strict", "auto"]
)
def test_the_fixture_works_in_both_modes(pytester: pytest.Pytester, mode: str, mark: str) -> None:
    pytester.makepyfile(USER_TEST.format(mark=mark))
    result = pytester.runpytest_subprocess(f"--asyncio-mode={mode}", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)


def test_the_fixture_needs_no_asyncio_plugin(pytester: pytest.Pytester) -> None:
    body = USER_TEST.format(mark="").replace("async def test_adds", "async def adds")
    body += """
    def test_adds(raft_cluster):
        import asyncio
        asyncio.run(adds(raft_cluster))
"""
    pytester.makepyfile(body)
    pytester.runpytest_subprocess("-p", "no:asyncio", "-p", "no:cacheprovider").assert_outcomes(passed=1)


@pytest.mark.asyncio
async def test_each_node_has_its_own_machine_and_directory(raft_cluster: RaftCluster, tmp_path: pathlib.Path) -> None:
    made: list[Adder] = []

    def factory() -> Adder:
        made.append(Adder())
        return made[-1]

    async with raft_cluster(3, factory, data_dir=tmp_path) as cluster:
        assert [node.id for node in cluster.nodes] == [1, 2, 3]
        await asyncio.gather(*(node.propose(b"1") for node in cluster.nodes for _ in range(20)))
        await cluster.wait_agreement()
    assert [machine.total for machine in made] == [60, 60, 60]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["node-1", "node-2", "node-3"]


@pytest.mark.asyncio
async def test_the_rest_agrees_when_the_leader_has_left() -> None:
    async with Cluster(3, Adder) as cluster:
        first = await cluster.leader()
        await first.propose(b"1")
        await first.aclose()
        second = await cluster.leader()
        assert second is not first
        assert await second.propose(b"1") == 2
        await cluster.wait_agreement()


@pytest.mark.asyncio
async def test_a_factory_that_gives_one_instance_twice_is_refused() -> None:
    machine = Adder()
    with pytest.raises(aioraft.ConfigError, match="belongs to another node"):
        async with Cluster(2, lambda: machine):
            pass


@pytest.mark.asyncio
async def test_what_is_waited_for_in_vain_is_said() -> None:
    async with Cluster(3, Adder) as cluster:
        leader = await cluster.leader()
        await leader.propose(b"1")
        await cluster.wait_agreement()
        cluster.partition([1], [2], [3])
        with pytest.raises(TimeoutError, match=r"no node led a majority within 0\.1 s: node 1: .* in term \d"):
            await cluster.leader(timeout=0.1)
        with pytest.raises(TimeoutError, match=r"did not agree within 0\.1 s: node 1: .*has applied \d of \d"):
            await cluster.wait_agreement(timeout=0.1)


@pytest.mark.asyncio
async def test_a_cluster_that_was_not_opened_says_so() -> None:
    cluster = Cluster(3, Adder)
    for call in (cluster.leader, cluster.wait_agreement, cluster.add, lambda: cluster.crash(1)):
        with pytest.raises(aioraft.RaftError, match="inside `async with`"):
            await call()


def test_wrong_arguments_are_refused() -> None:
    machine: Any = Adder()
    with pytest.raises(aioraft.ConfigError, match="give what makes one, such as the class"):
        Cluster(3, machine)
    with pytest.raises(aioraft.ConfigError, match="give what makes one, such as the class"):
        Simulation(1, 3, machine, command=[b"1"])
