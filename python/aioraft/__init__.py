"""A Raft cluster that an asyncio application can be: `Node`, `StateMachine`, and what they raise.

| where | what |
|---|---|
| `aioraft` | the node, the state machine, the errors |
| `aioraft.testing` | a cluster of real nodes in one process, and its pytest fixture |
| `aioraft.aiohttp` | a node that starts and stops with an aiohttp application |
"""

from ._commits import Commits
from ._config import Config
from ._core import Entry
from ._errors import (
    AppliedWithoutResultError,
    ApplyError,
    Compacted,
    ConfigError,
    FatalError,
    NodeClosedError,
    NotCommittedError,
    Outcome,
    OutcomeUnknownError,
    ProposalError,
    ProposalTimeoutError,
    ProposalTooLargeError,
    RaftError,
    ReadTimeoutError,
    ReentrantCallError,
    WrongLoopError,
)
from ._leadership import Leadership, LeadershipChanges, Leading, Term
from ._node import Data, Node
from ._state_machine import StateMachine
from ._status import PeerStatus, Status

__all__ = [
    "AppliedWithoutResultError",
    "ApplyError",
    "Commits",
    "Compacted",
    "Config",
    "ConfigError",
    "Data",
    "Entry",
    "FatalError",
    "Leadership",
    "LeadershipChanges",
    "Leading",
    "Node",
    "NodeClosedError",
    "NotCommittedError",
    "Outcome",
    "OutcomeUnknownError",
    "PeerStatus",
    "ProposalError",
    "ProposalTimeoutError",
    "ProposalTooLargeError",
    "RaftError",
    "ReadTimeoutError",
    "ReentrantCallError",
    "StateMachine",
    "Status",
    "Term",
    "WrongLoopError",
]
__version__ = "0.1.0"
