"""Real clusters for tests: `Cluster`, and the pytest fixture `raft_cluster` (see `aioraft.testing.plugin`)."""

from ._cluster import TEST_CONFIG, Cluster

__all__ = ["TEST_CONFIG", "Cluster"]
