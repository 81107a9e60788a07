"""`ChangesMembers`: the part of `Node` that is about who belongs to the cluster."""

from __future__ import annotations

import abc
import asyncio
import dataclasses
from collections.abc import Iterable, Mapping

from ._changes import (
    AddLearner,
    Change,
    Demote,
    MemberInfo,
    MembershipChange,
    Promote,
    Remove,
    UpdateMember,
    encode,
)
from ._config import Config
from ._core import Core
from ._errors import ConfigError, MembershipError, MembershipTimeoutError, ReadTimeoutError
from ._members import check_id
from ._status import Status
from ._timeout import DEFAULT_TIMEOUT, Timeout, check_timeout

__all__ = ["ChangesMembers"]


class ChangesMembers(abc.ABC):
    """What every `Node` can do about the members of its cluster, leader or not.

    All calls that change something have these in common.

    They end when the change has come to its end, and return what it came to. Each is idempotent: whoever has lost the
    answer asks again for the same, and gets it without anything being added or removed twice. Ids of removed nodes are
    never used again. Several calls at once take effect one after the other.

    `timeout`: seconds, if not `Config.membership_timeout`; None waits for ever. Cancelling stops the waiting, not the
    change.

    They raise:
    - `ConfigError`: an argument is wrong. Nothing was asked.
    - `MembershipError`: it cannot be with these members, and the message says why; nothing has changed.
    - `MembershipTimeoutError` (also a TimeoutError): the deadline passed; the message says what was in the way, and
      `outcome` whether it may take effect all the same.
    - `RemovedError` (a `FatalError`): this node itself was removed meanwhile.
    - `NodeClosedError`, `FatalError`.
    """

    _config: Config

    @property
    @abc.abstractmethod
    def _core(self) -> Core: ...

    @property
    @abc.abstractmethod
    def id(self) -> int:
        """This node's id."""

    @abc.abstractmethod
    def status(self) -> Status:
        """Return figures about this node, as of its last round. Never waits."""

    def members(self) -> dict[int, MemberInfo]:
        """Return who belongs to the cluster, this node included, by their ids. Never waits.

        As of this node's last round; right after `read_barrier`, what was decided before that is in it. Before the
        cluster is formed, those that this node was started with.
        """
        status = self.status()
        own = MemberInfo(
            address=status.address,
            votes=status.votes,
            metadata=status.metadata,
            connected=status.role not in ("closed", "stopped"),
            trouble=None,
        )
        others = {
            peer.id: MemberInfo(
                address=peer.address,
                votes=peer.votes,
                metadata=peer.metadata,
                connected=peer.connected,
                trouble=peer.trouble,
            )
            for peer in status.peers
        }
        return dict(sorted({**others, status.id: own}.items()))

    async def add_learner(
        self, id: int, address: str, *, metadata: Mapping[str, str] | None = None, timeout: Timeout = DEFAULT_TIMEOUT
    ) -> MembershipChange:
        """Let a new node join, without a vote: it is sent the log and follows it. It need not run yet.

        It is started with this `id`, an empty data directory, and in its `members=` some that are there already, and
        itself at `address`; before or after this call. Whichever directory first connects under the id is the member.
        `promote` gives it a vote.

        An id, or a directory, that was a member's before is refused. See `ChangesMembers` for the rest.
        """
        return await self.change_members([AddLearner(id, address, metadata)], timeout=timeout)

    async def promote(self, id: int, *, timeout: Timeout = DEFAULT_TIMEOUT) -> MembershipChange:
        """Give a learner a vote, as soon as it has caught up: until the deadline that is waited for.

        It has when it needed less than an election timeout for what there was. One that does not run, or cannot be
        reached, or is too slow stays a learner, and the `MembershipTimeoutError` says so. See `ChangesMembers` for the
        rest.
        """
        return await self.change_members([Promote(id)], timeout=timeout)

    async def demote(self, id: int, *, timeout: Timeout = DEFAULT_TIMEOUT) -> MembershipChange:
        """Make a voter a learner: it follows the log and does not vote. A leader hands over before.

        See `ChangesMembers` for the rest.
        """
        return await self.change_members([Demote(id)], timeout=timeout)

    async def remove(self, id: int, *, timeout: Timeout = DEFAULT_TIMEOUT) -> MembershipChange:
        """Remove a member for good, whether it runs or not, this node too. A leader hands over before.

        The removed node is told when it can be reached, and ends with `RemovedError`. It takes a majority of the voters
        before it: remove a node that is down while there is one. See `ChangesMembers` for the rest.
        """
        return await self.change_members([Remove(id)], timeout=timeout)

    async def update_member(
        self,
        id: int,
        *,
        address: str | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout: Timeout = DEFAULT_TIMEOUT,
    ) -> MembershipChange:
        """Say where a member is reached, or something else about it; what is not given stays as it is.

        A node that runs says where it is reached by itself; this is for one whose address the others must know before
        it can reach them. `metadata` takes the place of all that was said before. See `ChangesMembers` for the rest.
        """
        return await self.change_members([UpdateMember(id, address, metadata)], timeout=timeout)

    async def change_members(
        self, changes: Iterable[Change], *, timeout: Timeout = DEFAULT_TIMEOUT
    ) -> MembershipChange:
        """Make several changes at once: all of them, or none.

        `changes` are 1 to 32 of `AddLearner`, `Promote`, `Demote`, `Remove` and `UpdateMember`. Several go through a
        joint configuration, in which majorities of both the old and the new voters must agree. See `ChangesMembers` for
        the rest.
        """
        core, seconds = self._core, self._seconds(timeout)
        wanted = list(changes)
        index, ids = await core.change_members([encode(change) for change in wanted], seconds)
        gone = {change.id for change in wanted if isinstance(change, Remove)}
        # A removed node may not have seen it: it is told by the others.
        members = {number: member for number, member in self.members().items() if number not in gone}
        return MembershipChange(index=index, ids=tuple(ids), members=members)

    async def replace(
        self,
        old: int,
        new: int,
        address: str,
        *,
        metadata: Mapping[str, str] | None = None,
        timeout: Timeout = DEFAULT_TIMEOUT,
    ) -> MembershipChange:
        """Have a new node vote in the place of an old one, which may be down, or this one.

        It is added as a learner, waited for until it has caught up, then it gets its vote and the old one leaves, in
        one joint change. Start it as for `add_learner`.

        What has been done already is not done again: after a lost answer, an error or a crash in between, the same call
        goes on where it was, from whichever node. An error in between says that the new one is a member by now.
        See `ChangesMembers` for the rest.
        """
        added = AddLearner(check_id("new", new), address, metadata)
        swapped: list[Change] = [Promote(new), Remove(check_id("old", old))]
        if old == new:
            raise ConfigError(f"old = new = {new}: an id is never used again, so the new node needs another one")
        encode(added)
        left = _Deadline(self._seconds(timeout))
        members = await self._newest_members(left)
        if old in members and not members[old].votes:
            raise MembershipError(f"node {old} has no vote for another one to take over: remove it, and add that one")
        if new in members:
            await self.change_members([UpdateMember(new, address, metadata)], timeout=left.seconds())
        elif old in members:
            await self.change_members([added], timeout=left.seconds())
        else:
            raise MembershipError(f"node {old} is no member of this cluster, and neither is node {new}: add that one")
        try:
            return await self.change_members(swapped, timeout=left.seconds())
        except MembershipError as error:
            raise type(error)(
                f"{error}; node {new} is a member by now: replace again to go on, or remove it", None
            ) from error

    async def _newest_members(self, left: _Deadline) -> dict[int, MemberInfo]:
        try:
            await self._core.read_barrier(left.seconds())
        except ReadTimeoutError as error:
            raise MembershipTimeoutError(f"nothing has changed: {error}", False) from error
        return self.members()

    def _seconds(self, timeout: Timeout) -> float | None:
        return self._config.membership_timeout if timeout is DEFAULT_TIMEOUT else check_timeout(timeout)


@dataclasses.dataclass
class _Deadline:
    """What several calls share one timeout by."""

    timeout: float | None
    began: float = dataclasses.field(default_factory=lambda: asyncio.get_running_loop().time())

    def seconds(self) -> float | None:
        """Return what is left of it."""
        if self.timeout is None:
            return None
        return max(0.0, self.timeout - (asyncio.get_running_loop().time() - self.began))
