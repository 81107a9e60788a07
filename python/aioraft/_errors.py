"""Every exception of aioraft, and what it means for the call that raised it.

RaftError                          `.outcome` says what became of the proposal, or is None where there was none
 ├── ConfigError                   an argument or a `Config` field is wrong                       (also ValueError)
 ├── FatalError                    this node has stopped and will answer no more calls
 │    ├── RemovedError             ... because the others have removed it from the cluster
 │    └── SupersededError          ... because the cluster was recovered without it
 ├── NodeClosedError               the node was closed, or not started yet
 ├── ProposalError                 this `propose` failed; the node goes on
 │    ├── NotCommittedError        not applied anywhere, and never will be: safe to retry
 │    │    ├── ProposalTimeoutError     the deadline passed before it left this process          (also TimeoutError)
 │    │    └── ProposalTooLargeError    longer than `Config.max_entry_bytes`                       (also ValueError)
 │    ├── OutcomeUnknownError      the deadline passed while it was under way: it may be applied  (also TimeoutError)
 │    ├── AppliedWithoutResultError     applied exactly once, but its result is not known here
 │    └── ApplyError               applied; `apply` raised, and that exception is the `__cause__`
 ├── ReadTimeoutError              a barrier, or a wait for a leader, passed its deadline         (also TimeoutError)
 ├── SnapshotError                 this `snapshot` failed, or there can be none; the node goes on
 │    └── SnapshotTimeoutError          its deadline passed; it is taken all the same            (also TimeoutError)
 ├── TransferError                 this `transfer_leader` failed, and says why; the node goes on
 │    └── TransferTimeoutError          its deadline passed before another node led              (also TimeoutError)
 ├── MembershipError               this change of the members failed, and says why; the node goes on
 │    └── MembershipTimeoutError        its deadline passed                                      (also TimeoutError)
 ├── Compacted                     a reader asked for entries that are not in the log any more: go on after `.restart`
 ├── ReentrantCallError            called from a place that it would have to wait for          (also RuntimeError)
 └── WrongLoopError                used from another event loop, thread or process             (also RuntimeError)

Cancellation is not here: it always leaves as `asyncio.CancelledError`. It ends the waiting, not the proposal.
"""

from __future__ import annotations

import enum

__all__ = [
    "AppliedWithoutResultError",
    "ApplyError",
    "Compacted",
    "ConfigError",
    "FatalError",
    "MembershipError",
    "MembershipTimeoutError",
    "NodeClosedError",
    "NotCommittedError",
    "Outcome",
    "OutcomeUnknownError",
    "ProposalError",
    "ProposalTimeoutError",
    "ProposalTooLargeError",
    "RaftError",
    "ReadTimeoutError",
    "ReentrantCallError",
    "RemovedError",
    "SnapshotError",
    "SnapshotTimeoutError",
    "SupersededError",
    "TransferError",
    "TransferTimeoutError",
    "WrongLoopError",
    "shown",
]

_SHOWN_MAX = 200


def shown(value: object) -> str:
    """Return `value` as an error's sentence shows it: as `repr` does, but never too long, and never failing."""
    try:
        text = repr(value)
    except Exception:  # an int of thousands of digits, say
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}..."


class Outcome(enum.Enum):
    """What became of a proposal whose `await` ended in an error."""

    NOT_COMMITTED = "not committed"
    """It is applied nowhere and never will be. Proposing it again cannot double it."""
    APPLIED = "applied"
    """It is applied exactly once on every node; the error is its result."""
    APPLIED_WITHOUT_RESULT = "applied without result"
    """It is applied exactly once, but what `apply` returned is not known here. Proposing it again doubles it."""
    UNKNOWN = "unknown"
    """It is applied exactly once, or will be, or never: proposing it again may double it."""


class RaftError(Exception):
    """The base of all exceptions that aioraft raises on purpose."""

    outcome: Outcome | None = None
    """What became of the proposal; None where there was none. A call that was refused because its node is not running,
    whatever it was, is `NOT_COMMITTED`: it has changed nothing."""

    def __str__(self) -> str:
        # Subclasses keep further attributes in `args`, so that pickling and copying work; people read the sentence.
        return str(self.args[0]) if self.args else ""


class ConfigError(RaftError, ValueError):
    """An argument or a `Config` field is wrong. The message names it, its value, and what would be right."""


class FatalError(RaftError):
    """This node has stopped: its disk failed, `apply` raised what may differ from replica to replica, or a rule that
    keeps the data safe did not hold. The message says which; what `apply` raised is the `__cause__`.

    Every call in flight ends with it and every later call raises it. The files stay as they were; the other nodes
    go on. `outcome` is `Outcome.UNKNOWN` for a proposal that was under way, since they may apply it,
    `Outcome.NOT_COMMITTED` for any call made, or still waiting for room, when the node had stopped, and None for a
    start, a read or a wait that was under way.
    """

    def __init__(self, message: str, committed: bool | None = None) -> None:
        """`committed` is False if the call cannot have been committed, None if that is unknown."""
        super().__init__(message, committed)
        self.outcome = Outcome.UNKNOWN if committed is None else Outcome.NOT_COMMITTED


class RemovedError(FatalError):
    """This node was removed from its cluster (`remove`, `replace`), and its id is never used again.

    The others have told it so, or it has applied that itself. To have the machine back, start it with an empty data
    directory as a new member.
    """


class SupersededError(FatalError):
    """The cluster's quorum was lost, and it was recovered from another node's directory (`aioraft recover`).

    What only this node holds is not part of the cluster any more. To have the machine back, start it with an empty data
    directory as a new member.
    """


class NodeClosedError(RaftError):
    """The node was closed (or not started) when, or before, the call could end.

    `outcome` is `Outcome.UNKNOWN` for a proposal that had left this process, else `Outcome.NOT_COMMITTED`.
    """

    def __init__(self, message: str, committed: bool | None = False) -> None:
        """`committed` is False if the call cannot have been committed, None if that is unknown."""
        super().__init__(message, committed)
        self.outcome = Outcome.UNKNOWN if committed is None else Outcome.NOT_COMMITTED


class ProposalError(RaftError):
    """This proposal failed; `outcome` says how. The node goes on."""


class NotCommittedError(ProposalError):
    """The proposal is applied nowhere and never will be. Proposing it again cannot double it."""

    outcome: Outcome | None = Outcome.NOT_COMMITTED


class ProposalTimeoutError(NotCommittedError, TimeoutError):
    """The deadline passed before the proposal left this process: there was no leader, or no room for it."""


class ProposalTooLargeError(NotCommittedError, ValueError):
    """The proposal is longer than `Config.max_entry_bytes`."""


class OutcomeUnknownError(ProposalError, TimeoutError):
    """The deadline passed while the proposal was under way. It may be applied already, later, or never.

    It is applied at most once all the same. Read the state (after `read_barrier()`) before proposing it again.
    """

    outcome: Outcome | None = Outcome.UNKNOWN


class AppliedWithoutResultError(ProposalError):
    """The proposal was applied exactly once, but this node learned of it from a snapshot, which holds no results."""

    outcome: Outcome | None = Outcome.APPLIED_WITHOUT_RESULT

    def __init__(self, message: str, index: int) -> None:
        """`index` is the log index at or before which it was applied."""
        super().__init__(message, index)

    @property
    def index(self) -> int:
        """The log index at or before which the proposal was applied."""
        return int(self.args[1])


class ApplyError(ProposalError):
    """`apply` raised for this entry, on every node if it is deterministic; the `__cause__` is what it raised here.

    The entry counts as applied: the state machine has seen it and will not see it again.
    """

    outcome: Outcome | None = Outcome.APPLIED

    def __init__(self, message: str, index: int) -> None:
        """`index` is the log index of the entry."""
        super().__init__(message, index)

    @property
    def index(self) -> int:
        """The log index of the entry."""
        return int(self.args[1])


class ReadTimeoutError(RaftError, TimeoutError):
    """The deadline of a barrier, or of a wait for a leader, passed. Nothing was proposed; try again."""


class SnapshotError(RaftError):
    """There is no snapshot: `snapshot` of the state machine raised, the disk took no more, or it has no such method.

    The node goes on, and its log keeps what the snapshot would have replaced; the next one is tried in due course.
    """


class SnapshotTimeoutError(SnapshotError, TimeoutError):
    """The deadline passed while the snapshot was being taken. It goes on; another `snapshot()` waits for it."""


class TransferError(RaftError):
    """No other node leads now: this one did not lead itself, or nobody could take over. The message says which.

    The node goes on, and takes proposals again.
    """


class TransferTimeoutError(TransferError, TimeoutError):
    """The deadline passed before another node led. One that had begun to take over may lead all the same."""


class MembershipError(RaftError):
    """The members were not changed, or not as far as this node knows: the message says why.

    `outcome` is `Outcome.NOT_COMMITTED` if nothing has changed, and `Outcome.UNKNOWN` if the change may have taken
    effect, or may yet. Asking again for the same change makes it once, however often it was asked for.
    """

    def __init__(self, message: str, committed: bool | None = False) -> None:
        """`committed` is False if nothing has changed, None if that is unknown."""
        super().__init__(message, committed)
        self.outcome = Outcome.UNKNOWN if committed is None else Outcome.NOT_COMMITTED


class MembershipTimeoutError(MembershipError, TimeoutError):
    """The deadline passed: a learner has not caught up, a majority does not answer, or another change is under way."""


class Compacted(RaftError):
    """The entries asked for have been compacted away: read the state machine, then go on reading after `restart`."""

    def __init__(self, message: str, restart: int) -> None:
        """`restart` is the index to give to `commits(after=...)`."""
        super().__init__(message, restart)

    @property
    def restart(self) -> int:
        """The index to give to `commits(after=...)` to go on reading."""
        return int(self.args[1])


class ReentrantCallError(RaftError, RuntimeError):
    """The call was made from a place that it would have to wait for, such as from inside `apply`."""

    outcome: Outcome | None = Outcome.NOT_COMMITTED


class WrongLoopError(RaftError, RuntimeError):
    """A node belongs to the event loop, thread and process in which it was started, and was used from another."""

    outcome: Outcome | None = Outcome.NOT_COMMITTED
