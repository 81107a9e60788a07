"""What `aioraft inspect --json` prints. Keys may be added; those that are there keep their names and meaning."""

from __future__ import annotations

from typing import Literal, TypedDict

__all__ = ["Entries", "Founder", "Guard", "HardState", "Log", "Members", "Membership", "Node", "Peer", "Report"]
__all__ += ["Session", "Snapshot"]


class Founder(TypedDict):
    """A node that formed the cluster, or is about to."""

    id: int
    identity: str
    """Of its data directory: 32 hexadecimal digits."""


class Peer(TypedDict):
    """What the node remembers of another, so that it knows a rolled-back or copied directory."""

    id: int
    identity: str
    boot: int
    """Its last start that was let in."""
    term: int
    """The highest term in which it spoke."""
    voted_term: int
    """The last term in which it voted for this node."""
    index: int
    """It holds everything committed up to here."""


class Node(TypedDict):
    """Whose directory it is."""

    id: int
    cluster: str
    identity: str
    """Drawn when the directory was created: 32 hexadecimal digits."""
    boot: int
    """How many times it has been started."""
    stage: Literal["unformed", "prepared", "formed"]
    """How far the cluster is formed, as far as this node knows."""
    founders: list[Founder]
    peers: list[Peer]


class HardState(TypedDict):
    """What Raft must not forget."""

    term: int
    vote: int | None
    """Who got this node's vote in `term`."""
    commit: int
    """The highest index that this node had noted as committed; more may be."""


class Entries(TypedDict):
    """How many entries of each kind the log holds."""

    application: int
    no_op: int
    """A new leader's first."""
    membership: int
    unknown: int
    """Of a kind that this version does not know."""


class Log(TypedDict):
    """The log."""

    first_index: int
    """Of the first entry, or of the next one if there is none."""
    last_index: int
    """Of the last entry; one less than `first_index` if there is none."""
    truncated_term: int
    """Of the entry before the first."""
    last_term: int
    """Of the last entry."""
    files: int
    bytes: int
    entries: Entries


class Members(TypedDict):
    """Who votes and learns, as of an index."""

    index: int
    voters: list[int]
    learners: list[int]
    voters_outgoing: list[int]
    """Not empty while members change: a majority of these is needed, too."""
    learners_next: list[int]
    """Voters until then, and learners from then on."""
    auto_leave: bool
    """The change is completed by the leader by itself."""


class Member(TypedDict):
    """What there is to a member beside its vote."""

    id: int
    identity: str | None
    """Of its data directory; None until it was met."""
    address: str | None
    """Where it is dialled; None while the log does not say, as for founders at first."""
    metadata: dict[str, str]


class Membership(TypedDict):
    """The members."""

    snapshot: Members | None
    """As of the snapshot that the log names."""
    committed: Members | None
    """As of the last entry known here to be committed; None where a node could not go on from the log."""
    members: list[Member] | None
    """As of the same entry."""
    retired: list[tuple[int, int]] | None
    """First and last of the ids that were removed, and are never used again."""
    incarnation: int | None
    """Counts recoveries in its upper 32 bits, and removals in the lower."""


class Session(TypedDict):
    """Which commands of a node were applied."""

    origin: int
    """The node."""
    boot: int
    """Its start whose commands count."""
    floor: int
    """Its lowest number that it may send again."""
    applied_ahead: int
    """How many were applied from the floor on."""


class Snapshot(TypedDict):
    """A snapshot's file."""

    file: str
    """Its name in the directory `snapshots`."""
    state: Literal["whole", "receiving", "writing"]
    index: int
    term: int
    bytes: int
    """What is there of it."""
    named: bool
    """The log names it: it is the one that counts. The next start removes most others."""
    problem: str | None
    """What is wrong with it; None if every checksum of a whole one is right."""


class Guard(TypedDict):
    """The tail guard: what must be found when the log is opened."""

    period_ms: int
    """How often it is written while the log is written to, if the disk is quick."""
    durable_batch: int
    """The last batch of writes known to be durable. Damage behind it is taken for the torn end of the log."""
    found_batch: int | None
    """The last batch that can be read; None if none can."""


class Report(TypedDict):
    """All of it. Whatever is None is not there, or cannot be read."""

    data_dir: str
    format: int | None
    locked: bool
    """A running node has it open: the report shows some moment of the recent past."""
    damage: list[str]
    """Why a node would not go on from it, in the words of that node; the first is what it would say."""
    node: Node | None
    hard_state: HardState | None
    log: Log | None
    membership: Membership
    sessions: list[Session] | None
    """As of `membership.committed`."""
    timestamp_ns: int | None
    """Replicated time as of `membership.committed`."""
    snapshots: list[Snapshot]
    guard: Guard | None
