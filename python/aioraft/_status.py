"""`Status`: figures about a node, as of its last round."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeAlias

__all__ = ["PeerState", "PeerStatus", "Role", "Status"]

Role: TypeAlias = Literal["leader", "follower", "candidate", "pre-candidate", "learner", "forming", "closed", "stopped"]
"""What a node is in its cluster: "forming" until all members have met once. A "learner" does not vote. A node that has
ended is "closed", or "stopped" if it stopped by itself, and knows of no leader and no connection any more."""

PeerState: TypeAlias = Literal["probe", "replicate", "snapshot"]
"""How a leader sends a peer its log: to find out where they agree, as a stream, or as a snapshot."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """What a node knows about another."""

    id: int
    """The peer."""
    address: str
    """Where it is reached."""
    votes: bool
    """It votes; otherwise it is a learner."""
    metadata: dict[str, str]
    """What is said of it, by itself or by whoever added it."""
    connected: bool
    """A connection to it is up."""
    trouble: str | None
    """Why no connection is up, as far as this node knows: one sentence. None while one is."""
    matched: int | None
    """The highest index known to be on its disk; None unless this node leads."""
    state: PeerState | None
    """How this node sends it the log; None unless this node leads."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Figures about a node. Times are in nanoseconds, counters begin at the node's start."""

    id: int
    """This node."""
    role: Role
    """What this node is in its cluster."""
    term: int
    """The current term."""
    leader: int | None
    """The leader of this term, if known."""
    commit: int
    """The highest index known to be committed."""
    applied: int
    """The index through which the engine has applied (sessions, membership, time)."""
    python_applied: int
    """The index through which the state machine has applied."""
    first_index: int
    """The first index in the log."""
    last_index: int
    """The last index in the log."""
    snapshot_index: int
    """The index of the newest snapshot on this node's disk, behind which a restart goes on; 0 without one."""
    snapshot_bytes: int
    """Bytes of that snapshot's file."""
    timestamp_ns: int
    """Replicated time of the last applied entry."""
    identity: str
    """Drawn when its data directory was created, 32 hexadecimal digits."""
    address: str
    """Where the others reach it."""
    votes: bool
    """It votes; otherwise it is a learner, or no member yet."""
    metadata: dict[str, str]
    """What is said of it, by itself or by whoever added it."""
    incarnation: int
    """Counts recoveries of the cluster in its upper 32 bits, and removals of members in the lower."""
    boot: int
    """How many times this data directory has been started."""
    pending_proposals: int
    """Proposals of this node that are not resolved."""
    reproposals: int
    """Attempts beyond the first that this node sent for its proposals."""
    duplicates_skipped: int
    """Entries of the log skipped here, because their command was applied before."""
    fsyncs: int
    """Fsyncs of the log."""
    fsync_last_ns: int
    """How long the last fsync took."""
    fsync_max_ns: int
    """How long the longest fsync took."""
    log_bytes: int
    """Bytes of the log's files on disk."""
    longest_drain_ns: int
    """The longest that aioraft held the event loop in one go, `apply` included."""
    peers: tuple[PeerStatus, ...]
    """The other members."""


def from_core(figures: dict[str, Any]) -> Status:
    """Give the core's figures their types."""
    peers = tuple(PeerStatus(**peer) for peer in figures.pop("peers"))
    return Status(**figures, peers=peers)
