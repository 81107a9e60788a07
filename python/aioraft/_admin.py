"""What an operator's tool gets when a node did not do what it was asked."""

from __future__ import annotations

from typing import Literal, TypeAlias

from ._errors import Outcome, RaftError

__all__ = ["AdminError", "Kind"]

Kind: TypeAlias = Literal[
    "unreachable",
    "turned-away",
    "lost",
    "unknown",
    "refused",
    "not-leader",
    "timed-out",
    "closed",
    "unsupported",
    "forming",
]
"""Nothing was asked: the node is "unreachable", or has "turned away" the tool. Asked, and no answer came: "lost". The
node says that it does not know whether it was done ("unknown"), that it "refused", that only the leader can
("not-leader"), that it was not done in time ("timed-out") or before it "closed", that it does not know how
("unsupported"), or that its cluster is not formed yet ("forming")."""


class AdminError(RaftError):
    """A node did not do what it was asked, or may not have; the message is one sentence that says why."""

    def __init__(self, message: str, kind: Kind, leader: int | None = None, leader_address: str | None = None) -> None:
        """`leader` and `leader_address` say whom to ask instead, if the node knows."""
        super().__init__(message, kind, leader, leader_address)
        self.kind: Kind = kind
        self.leader = leader
        self.leader_address = leader_address
        self.outcome = Outcome.UNKNOWN if kind in ("lost", "unknown") else Outcome.NOT_COMMITTED
