"""The pytest plugin: the fixtures `raft_cluster` and `raft_simulation`; pytest loads it once aioraft is installed.

```python
@pytest.mark.asyncio
async def test_stock(raft_cluster):
    async with raft_cluster(3, Stock) as cluster:
        assert await cluster.nodes[0].propose(b'["bolt", 5]') == 5


def test_stock_for_ten_minutes(raft_simulation):
    raft_simulation(3, Stock, command=lambda rng: b'["bolt", %d]' % rng.randrange(9)).run(seconds=600)
```

It needs no asyncio plugin of its own, so it works with pytest-asyncio in strict and in auto mode, and with others.

| option | |
|---|---|
| `--raft-seeds N` | runs each test that uses `raft_simulation` with the seeds 1 to N |
| `--raft-seed SEED` | with this one, or from this one on; without either option a new one is drawn each time |
| `--raft-once` | does not run them a second time in a process with other hashes (see `raft_simulation`) |
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Final, Protocol, TypeVar

import pytest

from .._config import Config
from .._state_machine import StateMachine
from ._cluster import Cluster
from ._node_logs import NodeLogs
from ._second_process import compare_with_second_process, how_again, is_second_process, write_lives
from ._simulation import Command, Simulation, SimulationError

__all__ = ["RaftCluster", "RaftSimulation", "raft_cluster", "raft_seed", "raft_simulation"]

R = TypeVar("R")


class RaftCluster(Protocol):
    """The type of the fixture `raft_cluster`: called as `Cluster` is."""

    def __call__(
        self,
        n: int,
        factory: Callable[[], StateMachine[R]],
        *,
        config: Config | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        seed: int | None = None,
    ) -> Cluster[R]:
        """Make a cluster, to be opened with `async with`."""
        ...


class RaftSimulation(Protocol):
    """The type of the fixture `raft_simulation`: called as `Simulation` is, without a seed."""

    def __call__(
        self, n: int, factory: Callable[[], StateMachine[R]], *, command: Command | Sequence[bytes]
    ) -> Simulation[R]:
        """Make a simulation with the test's seed, to be `run`."""
        ...


class Used:
    """What a test has made with the fixtures, and what its report tells of it."""

    def __init__(self) -> None:
        self.seed: int | None = None
        self.simulations: list[Simulation[Any]] = []
        self.clusters: list[Cluster[Any]] = []
        self.logs: NodeLogs | None = None


USED: Final = pytest.StashKey[Used]()
COMPARED: Final = pytest.StashKey[set[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Called by pytest."""
    group = parser.getgroup("aioraft", "tests with raft_simulation")
    group.addoption("--raft-seeds", type=_positive, metavar="N", help="run them with N seeds: 1 to N")
    group.addoption(
        "--raft-seed", type=_seed, metavar="SEED", help="run them with this seed, or with N from this one on"
    )
    group.addoption("--raft-once", action="store_true", help="not a second time, in a process with other hashes")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seeds, which is a whole number from 1 on")
    return int(text)


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 1 << 64:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed, which is a whole number from 0 to 2**64 - 1")
    return int(text)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Called by pytest: one test for each seed."""
    count = metafunc.config.getoption("raft_seeds")
    if count is not None and "raft_seed" in metafunc.fixturenames:
        first = metafunc.config.getoption("raft_seed")
        first = 1 if first is None else first
        seeds = range(first, first + count)
        metafunc.parametrize("raft_seed", seeds, indirect=True, ids=[f"seed-{seed}" for seed in seeds])


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Called by pytest: a simulation that has passed runs again in another process, once for all seeds."""
    __tracebackhide__ = True
    result = yield
    used = pyfuncitem.stash.get(USED, None)
    if used is None or used.seed is None:
        return result
    if is_second_process():
        write_lives(used.simulations)
    elif not pyfuncitem.config.getoption("raft_once"):
        compared = pyfuncitem.config.stash.setdefault(COMPARED, set())
        test = pyfuncitem.nodeid.replace(f"seed-{used.seed}", "")
        if test not in compared:
            compared.add(test)
            compare_with_second_process(pyfuncitem, used.seed, used.simulations)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Called by pytest: a failure says with which seeds it can be had again, and what the nodes have done."""
    report = yield
    used = item.stash.get(USED, None)
    if used is None or not report.failed:
        return report
    error = None if call.excinfo is None else call.excinfo.value
    if isinstance(error, SimulationError) and error.transcript:
        report.sections.append(("aioraft simulation, virtual seconds", "\n".join(error.transcript)))
    if used.seed is not None:
        seed = error.seed if isinstance(error, SimulationError) else used.seed
        report.sections.append(("aioraft seed", how_again(item, seed)))
    for cluster in used.clusters:
        report.sections.append(("aioraft seed", f"raft_cluster(..., seed={cluster.seed})"))
    if used.logs is not None and not _shows_logs(item) and (text := used.logs.text()):
        report.sections.append(("aioraft node logs", text))
    return report


def _shows_logs(item: pytest.Item) -> bool:
    """Whether pytest itself shows all that is logged."""
    plugin = item.config.pluginmanager.get_plugin("logging-plugin")
    return plugin is not None and getattr(plugin, "log_level", None) is None


def _used(request: pytest.FixtureRequest) -> Used:
    node: pytest.Item = request.node
    return node.stash.setdefault(USED, Used())


@pytest.fixture
def raft_cluster(request: pytest.FixtureRequest) -> Iterator[RaftCluster]:
    """Make clusters of real nodes, each opened by the test: `async with raft_cluster(3, Stock) as cluster:`.

    Those that a test leaves open are closed at its end. If it fails, its report holds what the nodes have logged.
    """
    used = _used(request)
    used.logs = NodeLogs()

    def make(
        n: int,
        factory: Callable[[], StateMachine[R]],
        *,
        config: Config | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        seed: int | None = None,
    ) -> Cluster[R]:
        cluster = Cluster(n, factory, config=config, data_dir=data_dir, seed=seed)
        used.clusters.append(cluster)
        return cluster

    with used.logs.listening():
        yield make
        for cluster in used.clusters:
            cluster._close_from_outside()


@pytest.fixture
def raft_seed(request: pytest.FixtureRequest) -> int:
    """The seed of a test's simulations: that of `--raft-seed` or `--raft-seeds`, or a new one each time."""
    given = getattr(request, "param", request.config.getoption("raft_seed"))
    return random.SystemRandom().getrandbits(32) if given is None else int(given)


@pytest.fixture
def raft_simulation(request: pytest.FixtureRequest, raft_seed: int) -> RaftSimulation:
    """Make simulated clusters: `raft_simulation(3, Stock, command=...).run(seconds=600)`.

    A test that passes is run a second time, in a process where strings have other hashes and with another time zone,
    and everything must come to the same there. With `--raft-seeds` that is done for the first seed only.
    """
    used = _used(request)
    used.seed = raft_seed

    def make(n: int, factory: Callable[[], StateMachine[R]], *, command: Command | Sequence[bytes]) -> Simulation[R]:
        simulation = Simulation(raft_seed, n, factory, command=command)
        simulation._how_again = how_again(request.node, "SEED")
        simulation._lives = []
        used.simulations.append(simulation)
        return simulation

    return make
