"""The pytest plugin: the fixture `raft_cluster`. pytest loads it by itself once aioraft is installed.

```python
@pytest.mark.asyncio
async def test_stock(raft_cluster):
    async with raft_cluster(3, Stock) as cluster:
        assert await cluster.nodes[0].propose(b'["bolt", 5]') == 5
```

It needs no asyncio plugin of its own, so it works with pytest-asyncio in strict and in auto mode, and with others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import pytest

from .._config import Config
from .._state_machine import StateMachine
from ._cluster import Cluster

__all__ = ["RaftCluster", "raft_cluster"]

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


@pytest.fixture
def raft_cluster() -> Iterator[RaftCluster]:
    """Make clusters of real nodes, each opened by the test: `async with raft_cluster(3, Stock) as cluster:`."""
    made: list[Cluster[object]] = []

    def make(
        n: int,
        factory: Callable[[], StateMachine[R]],
        *,
        config: Config | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        seed: int | None = None,
    ) -> Cluster[R]:
        cluster = Cluster(n, factory, config=config, data_dir=data_dir, seed=seed)
        made.append(cluster)  # type: ignore[arg-type]
        return cluster

    yield make
    if any(cluster.is_open for cluster in made):
        pytest.fail("a cluster of raft_cluster was left open: use `async with raft_cluster(...) as cluster:`")
