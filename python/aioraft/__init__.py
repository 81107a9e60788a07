"""A Raft cluster that an asyncio application can be: `Node`, `StateMachine`, and what they raise.

| where | what |
|---|---|
| `aioraft` | the node, the state machine, the errors |
| `aioraft.testing` | a cluster of real nodes in one process, a simulated one, and their pytest fixtures |
| `aioraft.aiohttp` | a node that starts and stops with an aiohttp application |
| `aioraft._cli` | the command `aioraft`, also `python -m aioraft` |

Inside, `_node` is where to begin. It checks arguments with `_members`, `_listen` and `_config`, and hands everything
else to `_core`, the extension module; `_proposing`, `_commits`, `_leadership`, `_timeout` and `_status` each make one
kind of call out of the core's futures and figures, and `_membership` the calls about the members, out of `_changes`.
The core calls back into `_state_machine`, and into `_snapshots`.
"""

from ._changes import AddLearner, Change, Demote, MemberInfo, MembershipChange, Promote, Remove, UpdateMember
from ._commits import Commits
from ._config import Config
from ._core import Entry
from ._errors import (
    AppliedWithoutResultError,
    ApplyError,
    Compacted,
    ConfigError,
    FatalError,
    MembershipError,
    MembershipTimeoutError,
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
    RemovedError,
    SnapshotError,
    SnapshotTimeoutError,
    SupersededError,
    TransferError,
    TransferTimeoutError,
    WrongLoopError,
)
from ._leadership import Leadership, LeadershipChanges, Leading, Term
from ._node import Node
from ._proposing import Data
from ._snapshots import SnapshotData
from ._state_machine import StateMachine
from ._status import PeerState, PeerStatus, Role, Status
from ._timeout import DEFAULT_TIMEOUT, DefaultTimeout, Timeout

__all__ = [
    "DEFAULT_TIMEOUT",
    "AddLearner",
    "AppliedWithoutResultError",
    "ApplyError",
    "Change",
    "Commits",
    "Compacted",
    "Config",
    "ConfigError",
    "Data",
    "DefaultTimeout",
    "Demote",
    "Entry",
    "FatalError",
    "Leadership",
    "LeadershipChanges",
    "Leading",
    "MemberInfo",
    "MembershipChange",
    "MembershipError",
    "MembershipTimeoutError",
    "Node",
    "NodeClosedError",
    "NotCommittedError",
    "Outcome",
    "OutcomeUnknownError",
    "PeerState",
    "PeerStatus",
    "Promote",
    "ProposalError",
    "ProposalTimeoutError",
    "ProposalTooLargeError",
    "RaftError",
    "ReadTimeoutError",
    "ReentrantCallError",
    "Remove",
    "RemovedError",
    "Role",
    "SnapshotData",
    "SnapshotError",
    "SnapshotTimeoutError",
    "StateMachine",
    "Status",
    "SupersededError",
    "Term",
    "Timeout",
    "TransferError",
    "TransferTimeoutError",
    "UpdateMember",
    "WrongLoopError",
]
__version__ = "0.1.0"
