"""What can change about the members, and what became of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeAlias

from ._errors import ConfigError, shown
from ._members import check_id, check_reachable

__all__ = [
    "AddLearner",
    "Change",
    "Demote",
    "Encoded",
    "MemberInfo",
    "MembershipChange",
    "Promote",
    "Remove",
    "UpdateMember",
    "encode",
]

Encoded: TypeAlias = tuple[str, int, str, dict[str, str] | None]
"""What `Core.change_members` takes: what is done, to whom, and what is known of it."""


@dataclasses.dataclass(frozen=True, slots=True)
class AddLearner:
    """A new member, without a vote. Done already if it is a member; what is given here replaces what was."""

    id: int
    """Of your choice, so that asking twice adds one node; never that of a former member."""
    address: str
    """Where the others reach it, "host:port"."""
    metadata: Mapping[str, str] | None = None
    """Names and values that all nodes know of it, 4 KiB at most."""


@dataclasses.dataclass(frozen=True, slots=True)
class Promote:
    """A learner gets a vote, when it has caught up. Done already if it votes."""

    id: int
    """Whose."""


@dataclasses.dataclass(frozen=True, slots=True)
class Demote:
    """A voter becomes a learner. Done already if it does not vote."""

    id: int
    """Whose vote goes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Remove:
    """A member leaves for good, whether it runs or not. Done already if it was removed."""

    id: int
    """Who leaves. Never used again."""


@dataclasses.dataclass(frozen=True, slots=True)
class UpdateMember:
    """Something about a member; what is not given stays as it is."""

    id: int
    """Whose."""
    address: str | None = None
    """Where the others reach it."""
    metadata: Mapping[str, str] | None = None
    """In the place of all that was there."""


Change: TypeAlias = AddLearner | Promote | Demote | Remove | UpdateMember
"""What `Node.change_members` takes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MemberInfo:
    """What a node knows about a member of its cluster."""

    address: str
    """Where it is reached."""
    votes: bool
    """It votes; otherwise it is a learner."""
    metadata: Mapping[str, str]
    """What is said of it, by itself or by whoever added it."""
    connected: bool
    """A connection to it is up; True of a node itself while it runs."""
    trouble: str | None
    """Why none is, as far as is known: one sentence."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MembershipChange:
    """A change of the members that has come to its end."""

    index: int
    """Where it stands in the log, also if it was so before and nothing had to change. Of a node that was removed, and
    heard of it from the others: the last change that it had seen."""
    ids: tuple[int, ...]
    """Whom it concerned, in the order of the changes."""
    members: Mapping[int, MemberInfo]
    """The members by their ids, as this node knew them when the call ended."""


def encode(change: Change) -> Encoded:
    """Return `change` as the core takes it. Raises `ConfigError`."""
    match change:
        case AddLearner(id, address, metadata):
            check_reachable("address", address)
            return "add", check_id("id", id), address, _checked(metadata)
        case Promote(id):
            return "promote", check_id("id", id), "", None
        case Demote(id):
            return "demote", check_id("id", id), "", None
        case Remove(id):
            return "remove", check_id("id", id), "", None
        case UpdateMember(id, address, metadata):
            if address is None and metadata is None:
                raise ConfigError(f"nothing is to change about node {shown(id)}: give an address, metadata, or both")
            if address is not None:
                check_reachable("address", address)
            return "update", check_id("id", id), address or "", _checked(metadata)
        case _:
            raise ConfigError(
                f"{shown(change)} is no change of the members: give AddLearner, Promote, Demote, Remove or UpdateMember"
            )


def _checked(metadata: Mapping[str, str] | None) -> dict[str, str] | None:
    if metadata is None:
        return None
    wrong = ConfigError(
        f'metadata = {shown(metadata)}: it must map texts to texts in UTF-8, such as {{"zone": "a"}}, or be None'
    )
    if not isinstance(metadata, Mapping):
        raise wrong
    checked: dict[str, str] = {}
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise wrong
        try:
            (key + value).encode()
        except UnicodeEncodeError:
            raise wrong from None
        checked[key] = value
    return checked
