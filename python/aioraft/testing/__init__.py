"""For tests: `Cluster`, real nodes in one process, and `Simulation`, a state machine in a simulated world.

The pytest fixtures `raft_cluster` and `raft_simulation` make them: see `aioraft.testing.plugin`.
"""

from ._cluster import TEST_CONFIG, Cluster
from ._simulation import Simulation, SimulationError, SimulationReport

__all__ = ["TEST_CONFIG", "Cluster", "Simulation", "SimulationError", "SimulationReport"]
