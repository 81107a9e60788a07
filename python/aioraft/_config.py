"""`Config`: everything that can be tuned, in seconds and bytes."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from ._errors import ConfigError, shown

__all__ = ["Config"]

_KIB = 1024
_MIB = 1024 * _KIB


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How a node behaves. The defaults are what one runs in production on a local network.

    Times are in seconds, sizes in bytes. All nodes of a cluster should use the same values. Pre-vote and check-quorum
    are always on. Raises `ConfigError`, naming the field, its value and what would be right.
    """

    election_timeout: float = 1.0
    """A follower that hears nothing for this long (up to twice, drawn at random) stands for election."""
    heartbeat_interval: float = 0.1
    """How often a leader says that it is there; at most a third of `election_timeout`."""
    propose_timeout: float | None = 10.0
    """The default deadline of `propose`, `propose_many` and `transfer_leader`; None waits for ever."""
    read_timeout: float | None = 10.0
    """The default deadline of `read_barrier`; None waits for ever."""
    membership_timeout: float | None = 60.0
    """The default deadline of `add_learner`, `promote` and the others that change the members; None waits for ever.
    Longer than a proposal's: a learner is waited for until it has caught up, and may be sent a snapshot for that."""
    close_timeout: float = 5.0
    """How long `aclose()` lets calls in flight end before it fails them; in half of that a leader hands over."""
    max_entry_bytes: int = 8 * _MIB
    """The longest command; a longer one is refused with `ProposalTooLargeError`."""
    max_pending_proposals: int = 65_536
    """`propose` waits while this many commands of this node are not resolved."""
    max_pending_bytes: int = 64 * _MIB
    """`propose` waits while the unresolved commands of this node have this many bytes."""
    max_message_bytes: int = 1 * _MIB
    """A leader puts entries of up to this many bytes into one message (always at least one entry)."""
    max_inflight_messages: int = 32
    """A leader sends a peer this many messages ahead of its acknowledgements."""
    max_uncommitted_bytes: int = 256 * _MIB
    """A leader accepts no more commands while its uncommitted entries have this many bytes."""
    max_unapplied_bytes: int = 64 * _MIB
    """Committed entries that wait in memory for `apply`; what lies beyond is read again from the log."""
    entry_cache_bytes: int = 64 * _MIB
    """The newest entries of the log that are kept in memory."""
    snapshot_entries: int | None = 100_000
    """A snapshot is taken when this many entries were applied since the last one; None: not because of their number."""
    snapshot_bytes: int | None = 256 * _MIB
    """A snapshot is taken when the entries applied since the last one have so many bytes; None: not because of that."""
    snapshot_trail: int = 10_000
    """Entries that stay in the log behind a snapshot, of about `snapshot_bytes` at most: a follower that lacks no more
    is sent these, not the snapshot."""
    snapshot_rate: int = 64 * _MIB
    """A leader sends a peer no more bytes of a snapshot in a second."""
    insecure: bool = False
    """Allow listening on an address that other machines can reach, though nothing is encrypted or authenticated."""

    admin_from: Literal["localhost", "anywhere"] = "localhost"
    """Whose commands (`aioraft status` and so on) are taken: those from the node's own machine, or from whoever reaches
    its port."""

    def __post_init__(self) -> None:
        """Check every field, then how they fit together."""
        _seconds(self, "election_timeout", least=0.01, most=3600)
        _seconds(self, "heartbeat_interval", least=0.001, most=1200)
        _seconds(self, "propose_timeout", least=0.001, most=1e9, optional=True)
        _seconds(self, "read_timeout", least=0.001, most=1e9, optional=True)
        _seconds(self, "membership_timeout", least=0.001, most=1e9, optional=True)
        _seconds(self, "close_timeout", least=0, most=3600)
        _count(self, "max_entry_bytes", least=1 * _KIB, most=64 * _MIB)
        _count(self, "max_pending_proposals", least=1, most=2**31)
        _count(self, "max_pending_bytes", least=1 * _KIB, most=2**40)
        _count(self, "max_message_bytes", least=1 * _KIB, most=64 * _MIB)
        _count(self, "max_inflight_messages", least=1, most=65_536)
        _count(self, "max_uncommitted_bytes", least=1 * _KIB, most=2**40)
        _count(self, "max_unapplied_bytes", least=1 * _KIB, most=2**40)
        _count(self, "entry_cache_bytes", least=0, most=2**40)
        _count(self, "snapshot_entries", least=1, most=2**40, optional=True)
        _count(self, "snapshot_bytes", least=1 * _KIB, most=2**50, optional=True)
        _count(self, "snapshot_trail", least=0, most=2**40)
        _count(self, "snapshot_rate", least=1 * _KIB, most=2**40)
        if not isinstance(self.insecure, bool):
            raise ConfigError(f"Config.insecure = {shown(self.insecure)}: it must be True or False")
        if self.admin_from not in ("localhost", "anywhere"):
            raise ConfigError(f"Config.admin_from = {shown(self.admin_from)}: it must be 'localhost' or 'anywhere'")
        if self.election_timeout < 3 * self.heartbeat_interval:
            raise ConfigError(
                f"Config.election_timeout = {self.election_timeout!r} is less than three times heartbeat_interval = "
                f"{self.heartbeat_interval!r}, so one lost heartbeat could start an election: make it at least "
                f"{3 * self.heartbeat_interval:g}"
            )
        for limit in ("max_pending_bytes", "max_uncommitted_bytes"):
            if getattr(self, limit) < self.max_entry_bytes:
                raise ConfigError(
                    f"Config.{limit} = {getattr(self, limit)} is less than max_entry_bytes = {self.max_entry_bytes}, "
                    f"so the longest command would never fit: make it at least {self.max_entry_bytes}, "
                    "or lower max_entry_bytes"
                )


def _seconds(config: Config, field: str, *, least: float, most: float, optional: bool = False) -> None:
    value: Any = getattr(config, field)
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ConfigError(
            f"Config.{field} = {shown(value)}: it must be a number of seconds, from {least:g} to {most:g}"
            f"{', or None' if optional else ''}"
        )


def _count(config: Config, field: str, *, least: int, most: int, optional: bool = False) -> None:
    value: Any = getattr(config, field)
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(
            f"Config.{field} = {shown(value)}: it must be a whole number{' of bytes' if 'bytes' in field else ''} "
            f"from {least} to {most}{', or None' if optional else ''}"
        )
