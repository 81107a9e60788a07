"""What `aioraft status` and `aioraft members` print with `--json`.

Keys may be added; those that are there keep their names and meaning.
"""

from __future__ import annotations

from typing import TypedDict

__all__ = ["Member", "Members", "NodeStatus", "Peer"]


class Peer(TypedDict):
    """What the node knows of another."""

    id: int
    address: str
    """Where it is reached."""
    connected: bool
    """A connection to it is up."""
    trouble: str | None
    """Why none is: one sentence."""
    matched: int | None
    """The highest index known to be on its disk; None unless the node leads."""
    state: str | None
    """How it is sent the log: "probe", "replicate" or "snapshot"; None unless the node leads."""


class NodeStatus(TypedDict):
    """How a node is. Times are in nanoseconds, counters begin at its start."""

    cluster: str
    id: int
    address: str
    """Where others are told to reach it."""
    version: str
    """Of aioraft."""
    role: str
    """As `aioraft.Status.role`."""
    term: int
    leader: int | None
    trouble: str | None
    """Why there is no leader, or which others are out of reach, and why: one sentence."""
    commit: int
    applied: int
    """The index through which the engine has applied."""
    python_applied: int
    """The index through which the state machine has applied."""
    first_index: int
    last_index: int
    snapshot_index: int
    """0 without one."""
    snapshot_bytes: int
    timestamp_ns: int
    """Replicated time of the last applied entry."""
    boot: int
    """How many times the data directory has been started."""
    pending_proposals: int
    reproposals: int
    duplicates_skipped: int
    fsyncs: int
    fsync_last_ns: int
    fsync_max_ns: int
    log_bytes: int
    peers: list[Peer]


class Member(TypedDict):
    """A member of a cluster."""

    id: int
    address: str
    votes: bool
    """Otherwise it is a learner."""
    connected: bool
    """The node that was asked has a connection to it, or is it."""
    identity: str | None
    """Of its data directory: 32 hexadecimal digits; None until it was met."""
    metadata: dict[str, str]


class Members(TypedDict):
    """Who belongs to a cluster, as far as the node that was asked knows."""

    leader: int | None
    incarnation: int
    """Counts removals and recoveries of the cluster."""
    members: list[Member]
