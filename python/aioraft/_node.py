"""`Node`: one member of a cluster."""

from __future__ import annotations

import asyncio
import copy
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Generic, Literal, TypeVar, cast, overload

from ._announce import announce, announce_memory, announce_whole_log
from ._commits import Commits
from ._config import Config
from ._core import Core, Faults
from ._errors import (
    ConfigError,
    FatalError,
    NodeClosedError,
    Outcome,
    RaftError,
    ReadTimeoutError,
    WrongLoopError,
    shown,
)
from ._leadership import Leadership, LeadershipChanges, Leading
from ._listen import bind, check_listen
from ._members import check_cluster, check_data_dir, check_id, check_members, check_reachable
from ._membership import ChangesMembers
from ._proposing import Data, as_items, propose_slices, wait_for_room
from ._seeds import Place, Seeds, check_seeds
from ._state_machine import StateMachine, ask_durable, claim, has_batch, has_snapshot
from ._status import Status, from_core
from ._timeout import DEFAULT_TIMEOUT, Timeout, check_timeout

__all__ = ["Node"]

R = TypeVar("R")


class Node(ChangesMembers, Generic[R]):
    """One member of a cluster, inside this process. `R` is what its state machine's `apply` returns.

    ```python
    async with aioraft.Node(id=1, members=members, data_dir="data", state_machine=Stock()) as node:
        left = await node.propose(b'["bolt", 5]')
    ```

    A node belongs to the event loop in which it was started; `WrongLoopError` otherwise. It is started once, and
    closed once. Consensus runs on a thread of its own and does not wait for the loop. What it can do about the members
    of its cluster stands in `ChangesMembers`.

    Every await ends in a result or in a `RaftError` whose `outcome` says what became of the proposal; a cancelled one
    ends in CancelledError, as everywhere, which stops the waiting and not the proposal. Once the node has stopped by
    itself (a failed disk, say) every call raises `FatalError`; once it is closed, `NodeClosedError`.
    """

    @overload
    def __init__(
        self,
        *,
        id: int,
        members: Mapping[int, str],
        name: None = ...,
        seeds: None = ...,
        bootstrap_expect: None = ...,
        data_dir: str | os.PathLike[str] | None,
        state_machine: StateMachine[R],
        listen: str | socket.socket | None = ...,
        advertise: str | None = ...,
        cluster: str = ...,
        config: Config | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        *,
        name: str,
        seeds: Sequence[str],
        bootstrap_expect: int,
        id: None = ...,
        members: None = ...,
        data_dir: str | os.PathLike[str] | None,
        state_machine: StateMachine[R],
        listen: str | socket.socket | None = ...,
        advertise: str | None = ...,
        cluster: str = ...,
        config: Config | None = ...,
    ) -> None: ...
    def __init__(
        self,
        *,
        id: int | None = None,
        members: Mapping[int, str] | None = None,
        name: str | None = None,
        seeds: Sequence[str] | None = None,
        bootstrap_expect: int | None = None,
        data_dir: str | os.PathLike[str] | None,
        state_machine: StateMachine[R],
        listen: str | socket.socket | None = None,
        advertise: str | None = None,
        cluster: str = "default",
        config: Config | None = None,
    ) -> None:
        """Check the arguments; nothing is opened before `start`. Raises `ConfigError`.

        Who the node is: either `id` and `members`, or `name`, `seeds` and `bootstrap_expect`.

        - `id`: this node's key in `members`; never to be used for another disk.
        - `members`: the address, "host:port", of every member by its id. It bootstraps the cluster, for which it is the
          same on all nodes; after that the log knows better, and it says where to find the others at first. A new node
          that lists itself beside a cluster waits until that has added it (`add_learner`). Names are looked up again at
          each reconnect.
        - `name`: of this node alone, such as a pod's. What is in `data_dir` says which node it is; without that, a
          cluster that answers at the seeds gives it an id, it catches up and gets a vote. The former member of its
          name, whose disk is lost, leaves then.
        - `seeds`: addresses to ask, the same on all nodes, in the same order. Names that stay, such as a pod's, not
          addresses that change.
        - `bootstrap_expect`: so many of the seeds, the first ones, found the cluster if none answers: once, all
          together, however often each is started meanwhile. 3 is usual. With 1 a node that has lost its disk and
          reaches none of the others founds another cluster: for trials.
        - `data_dir`: a directory of this node's own, made if it is missing. None keeps the log in memory, for tests
          and demos: what such a node knew is gone when it stops, and it cannot come back under its id. The other
          members refuse it, because it no longer knows what it voted for and acknowledged.
        - `state_machine`: a fresh instance, for this node only.
        - `listen`: where to accept connections, if not at the node's address in `members`: "host:port" (port 0 lets
          the system choose), or a bound TCP socket, which the node takes over and closes.
        - `advertise`: the address under which other nodes reach this one, if not the one in `members`, or the seed
          whose host is `name`, or begins with it.
        - `cluster`: a name; nodes of another cluster are refused.
        """
        if config is None:
            config = Config()
        elif not isinstance(config, Config):
            raise ConfigError(f"config = {shown(config)}: it must be an aioraft.Config")
        if advertise is not None:
            check_reachable("advertise", advertise)
        self._cluster = check_cluster(cluster)
        self._data_dir = check_data_dir(data_dir)
        self._seeds: Seeds | None = None
        self._finding: asyncio.Task[Place] | None = None
        if name is None and seeds is None and bootstrap_expect is None:
            if id is None and members is None:
                raise ConfigError(
                    "a node needs id= and members=, or else name=, seeds= and bootstrap_expect=, with which it finds "
                    "its place"
                )
            self._id = check_id("id", id)
            self._members = check_members(self._id, {} if members is None else members)
            own = self._members[self._id]
        elif id is None and members is None:
            self._seeds = check_seeds(name, seeds, bootstrap_expect, advertise=advertise, cluster=cluster)
            self._id, self._members = 0, {}  # known when it has found its place
            own = advertise = self._seeds.advertise
        else:
            raise ConfigError(
                "id= and members= name the nodes of a cluster by hand; name=, seeds= and bootstrap_expect= let a node "
                "find its place: give the one or the other"
            )
        self._listen = check_listen(own if listen is None else listen)
        self._advertise = advertise
        self._config = config
        self._propose_timeout = config.propose_timeout
        self._read_timeout = config.read_timeout
        self._running: Core | None = None
        self._starting = False
        self._address: str | None = None
        self._is_memory_meant = False  # set by aioraft.testing
        self._closing = False
        self._faults: Faults | None = None  # put in by aioraft.testing
        claim(state_machine)  # last, so that a refused argument leaves it free
        self._state_machine = state_machine

    # The node's life

    async def start(self) -> None:
        """Open the log, replay it, and listen. Returns when it listens; await `ready` for a leader.

        A node with a `name` returns when it has its place: when it belongs to the cluster and knows of a leader. Until
        the founders have met, or a cluster has taken it in, it goes on asking the seeds; `asyncio.timeout` bounds that.

        Raises `ConfigError` if the arguments are wrong in a way that shows only now (the address cannot be had, or may
        not be used without TLS; the data directory is another node's, in use, or of a cluster with other members), and
        `FatalError` if the log cannot be opened or written. Cancelled or failed, it leaves nothing open. While it had
        no place yet it may be called again; later on a new Node with a fresh state machine is needed.
        """
        if self._closing:
            raise NodeClosedError(f"{self._who} is closed: make a new Node with a fresh state machine")
        if self._starting or self._running is not None:
            raise RaftError(f"{self._who} has been started already: start it once, or use `async with` alone")
        self._starting = True
        try:
            bound = await bind(self._listen, insecure=self._config.insecure)
            try:
                if self._seeds is None:
                    await self._start_core(bound, None)
                else:
                    await self._find_place(bound, self._seeds)
            finally:
                bound.close()  # the core listens on a duplicate
        finally:
            self._starting = False
        announce(self._id, self._cluster, self.address, insecure=self._config.insecure)
        if self._data_dir is None:
            announce_memory(self._id, is_meant=self._is_memory_meant)
        if not has_snapshot(self._state_machine):
            announce_whole_log(self._id)

    async def _find_place(self, bound: socket.socket, seeds: Seeds) -> None:
        """Start as the node that this one is, or becomes."""
        place = await self._found_place(seeds)
        try:
            await self._start_core(bound, place)
            # A founder that has lost its disk may find a cluster meanwhile, and becomes a new member of that.
            other = await seeds.leader_or_place(self._core, place)
            if other is not None:
                await self._core.close(0)
                await self._start_core(bound, other)
                await seeds.leader_or_place(self._core, other)
        except BaseException as error:
            self._closing = True
            if self._running is not None:
                await _to_the_end(self._running.close(0))
            if isinstance(error, NodeClosedError):
                raise self._closed_early() from None
            raise

    async def _found_place(self, seeds: Seeds) -> Place:
        if self._closing:
            raise self._closed_early()
        self._finding = asyncio.create_task(seeds.find(self._data_dir))
        try:
            return await self._finding
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closing and task is not None and not task.cancelling():
                raise self._closed_early() from None  # it was `aclose` that cancelled the search
            raise
        finally:
            self._finding = None

    def _closed_early(self) -> NodeClosedError:
        return NodeClosedError(f"{self._who} was closed while it started")

    async def _start_core(self, bound: socket.socket, place: Place | None) -> None:
        if self._closing:
            raise self._closed_early()
        joins = None
        if place is not None:
            self._id, self._members = place.id, place.members
            joins = (place.name, place.identity if place.is_new else None)
        core = Core(
            loop=asyncio.get_running_loop(),
            node_id=self._id,
            members=self._members,
            cluster=self._cluster,
            data_dir=self._data_dir,
            listen=bound.fileno(),
            advertise=self._advertise or self._members[self._id],
            joins=joins,
            config=self._config,
            state_machine=self._state_machine,
            batch=has_batch(self._state_machine),
            snapshots=has_snapshot(self._state_machine),
            durable_applied=ask_durable(self._state_machine),
            faults=self._faults,
        )
        self._running = core
        try:
            self._address = await core.start()
        except BaseException:
            # The state machine may have seen entries: this node cannot be started again.
            self._closing = True
            await _to_the_end(core.close(0))
            self._running = None
            raise

    async def aclose(self) -> None:
        """Stop: hand over if this node leads, let calls in flight end, and close.

        1. New calls raise `NodeClosedError`, and `leading()` ends.
        2. A leader hands over to whichever connected voter is furthest, so that the others go on without an election
           timeout. It takes half of `Config.close_timeout` at most, and is left out where nobody can take over.
        3. Calls in flight end, under the next leader if need be; what has not ended `Config.close_timeout` after the
           call to `aclose` fails with `NodeClosedError`.
        4. The log is written and closed, and the peers are told.

        With `close_timeout` = 0 it closes at once. May be called again, and at once by several tasks: all return when
        the node is closed. Cancelled, it stops waiting, and the node closes all the same. A `start` that is under way
        raises `NodeClosedError`. A call of `apply` that is running is waited for; what is not applied by then will be
        after the next start.
        """
        finding = self._finding
        if finding is not None and finding.get_loop() is not asyncio.get_running_loop():
            raise WrongLoopError(
                f"{self._who} starts in another event loop than the one that runs here: close it there"
            )
        closed = None if self._running is None else self._running.close(self._config.close_timeout)
        self._closing = True  # not before: a call from a wrong place has raised, and changes nothing
        if finding is not None:
            finding.cancel()
            await asyncio.wait([finding])
        if closed is not None:
            await closed

    async def wait_stopped(self) -> None:
        """Wait until the node has ended: return once it is closed, raise `FatalError` if it has stopped by itself.

        What a service awaits beside its work, so that it does not go on without its node:

        ```python
        async with aioraft.Node(...) as node, asyncio.TaskGroup() as tasks:
            tasks.create_task(node.wait_stopped())
        ```

        Cancelled, it stops waiting. Raises `NodeClosedError` if the node is not started.
        """
        core = self._core
        try:
            while True:
                await core.wait_leadership(core.leadership[0])
        except NodeClosedError:
            await core.close(self._config.close_timeout)  # it is closing already: this waits for the end

    async def __aenter__(self) -> Node[R]:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.aclose()

    async def ready(self, *, timeout: float | None = None) -> None:
        """Wait until there is a leader and this node has applied all that was committed before this call.

        `timeout` is in seconds; None waits for ever. Raises `ReadTimeoutError`.
        """
        await self._core.read_barrier(check_timeout(timeout))

    # Writing and reading

    async def propose(self, data: Data, *, timeout: Timeout = DEFAULT_TIMEOUT) -> R:
        """Have `data` applied once on every node and return what `apply` returned here, on this node.

        Works on any node: it is forwarded to the leader and sent again when that fails, and is applied exactly once
        as long as this process lives. Sequential awaits are applied in that order; concurrent ones in any order.
        While too much is pending (`Config.max_pending_proposals`, `max_pending_bytes`) it waits for room.

        `timeout`: seconds, if not `Config.propose_timeout`; None waits for ever.

        Raises:
        - TypeError: `data` is no bytes. `ConfigError`: `timeout` is no number of seconds.
        - `NotCommittedError` (`ProposalTimeoutError`, `ProposalTooLargeError`): never applied, safe to retry.
        - `OutcomeUnknownError` (also a TimeoutError): the deadline passed while it was under way.
        - `ApplyError` from the exception that `apply` raised: it counts as applied.
        - `AppliedWithoutResultError`: applied, but this node learned of it from a snapshot.
        - `NodeClosedError`, `FatalError`: see their `outcome`.

        Cancelling stops the waiting, not the proposal.
        """
        core = self._running
        if core is None:
            raise self._not_running()
        seconds = self._propose_timeout if timeout is DEFAULT_TIMEOUT else check_timeout(timeout)
        if core.full:
            seconds = await wait_for_room(core, seconds)
        return cast(R, await core.propose(data, seconds))

    @overload
    async def propose_many(
        self, items: Iterable[Data], *, timeout: Timeout = ..., return_exceptions: Literal[False] = ...
    ) -> list[R]: ...
    @overload
    async def propose_many(
        self, items: Iterable[Data], *, timeout: Timeout = ..., return_exceptions: Literal[True]
    ) -> list[R | RaftError]: ...
    @overload
    async def propose_many(
        self, items: Iterable[Data], *, timeout: Timeout = ..., return_exceptions: bool
    ) -> list[R] | list[R | RaftError]: ...
    async def propose_many(
        self, items: Iterable[Data], *, timeout: Timeout = DEFAULT_TIMEOUT, return_exceptions: bool = False
    ) -> list[R] | list[R | RaftError]:
        """Propose each of `items` and return their results, in the order of `items`; faster than single awaits.

        There is no order and no atomicity among the items: each is a proposal of its own and may fail by itself.
        With `return_exceptions` a failed item's place holds its exception; otherwise, when all have ended, the first
        failed item's exception is raised, and says nothing of the others. What is wrong with the whole call (an item
        that is too long or no bytes, no room in time, a closed node) is raised at once, with nothing proposed.

        `timeout` (for all together), errors and cancellation as with `propose`.
        """
        core = self._core
        seconds = self._propose_timeout if timeout is DEFAULT_TIMEOUT else check_timeout(timeout)
        results = await propose_slices(core, as_items(items), seconds, self._config.max_entry_bytes)
        if not return_exceptions:
            failed = [result for result in results if isinstance(result, RaftError)]
            if failed:
                failed[0].add_note(f"{len(failed)} of {len(results)} items failed; return_exceptions=True shows each")
                raise failed[0]
        return results

    async def read_barrier(self, *, timeout: Timeout = DEFAULT_TIMEOUT) -> int:
        """Wait until this node has applied everything committed before this call; return the index read at.

        The state machine read after it, without another await in between, is linearizable. Barriers that are awaited
        together share one round to a majority. Retried while there is no leader.

        `timeout`: seconds, if not `Config.read_timeout`; None waits for ever. Raises `ReadTimeoutError`.
        """
        seconds = self._read_timeout if timeout is DEFAULT_TIMEOUT else check_timeout(timeout)
        return await self._core.read_barrier(seconds)

    async def snapshot(self, *, timeout: float | None = None) -> int:
        """Take a snapshot of this node's state machine now and return its index, when it is durable.

        Snapshots are taken by themselves (`Config.snapshot_entries`, `snapshot_bytes`); this is for a planned moment,
        such as before an upgrade. One that is being taken is waited for instead. The log is compacted behind it.

        `timeout`: seconds; None waits for ever. Cancelling stops the waiting, not the snapshot.

        Raises:
        - `SnapshotError`: `StateMachine.snapshot` raised, which is in the log, or could not be written; or there is no
          such method. The node goes on.
        - `SnapshotTimeoutError` (also a TimeoutError): the deadline passed; the snapshot goes on.
        - `NodeClosedError`, `FatalError`.
        """
        return await self._core.snapshot(check_timeout(timeout))

    def commits(self, after: int | None = None) -> Commits:
        """Iterate over the entries applied here, in order, without duplicates: `async for entry in node.commits()`.

        `after` is the index behind which to start: 0 for the beginning of the log, a former reader's
        `Commits.position` to go on, None for what is applied from now on. Raises `NodeClosedError` or `FatalError` at
        once if the node is not running; when it is closed later, the iteration ends.
        """
        core = self._answering()
        if after is None:
            after = core.applied
        elif not isinstance(after, int) or isinstance(after, bool) or not 0 <= after < 2**64:
            raise ConfigError(
                f"commits(after={shown(after)}): it must be an index (0 for the beginning), or None for now"
            )
        return Commits(core, after)

    # Leadership

    def leadership(self) -> LeadershipChanges:
        """Iterate over who leads: first what is known now, then each change; the newest wins.

        Raises `NodeClosedError` or `FatalError` at once if the node is not running; when it is closed later, the
        iteration ends.
        """
        return LeadershipChanges(self._answering())

    async def wait_for_leader(self, *, timeout: float | None = None) -> Leadership:
        """Wait until a leader is known, and return it and its term.

        `timeout` is in seconds; None waits for ever. Raises `ReadTimeoutError`.
        """
        core = self._core
        seconds = check_timeout(timeout)
        try:
            async with asyncio.timeout(seconds):
                while True:
                    version, term, leader, _ = core.leadership
                    if leader is not None:
                        return Leadership(term, leader)
                    await core.wait_leadership(version)
        except TimeoutError as error:
            raise ReadTimeoutError(
                f"{self._who} heard of no leader within {seconds} s: {_trouble(self.status())}"
            ) from error

    async def transfer_leader(self, to: int | None = None, *, timeout: Timeout = DEFAULT_TIMEOUT) -> int:
        """Have another node lead in the place of this one, and return its id once it does.

        `to` is its id, and returned at once if that is this node; None stands for whichever connected voter is
        furthest. It waits until that one has caught up, and the leader takes proposals meanwhile; then it takes none
        until the other one leads, usually for some milliseconds. Those that come in between are made again by
        themselves. Where somebody else is elected meanwhile, it is that one's id that is returned.

        `timeout`: seconds, if not `Config.propose_timeout`; None waits for ever. Cancelling stops the waiting, not the
        transfer.

        Raises:
        - `ConfigError`: `to` cannot be a node's id.
        - `TransferError`: this node does not lead, `to` is no voter or not connected, nobody else is, or it did not
          take over within an election timeout. The message says which, and who leads. The node goes on.
        - `TransferTimeoutError` (also a TimeoutError): the deadline passed; it may lead soon all the same.
        - `NodeClosedError`, `FatalError`.
        """
        seconds = self._propose_timeout if timeout is DEFAULT_TIMEOUT else check_timeout(timeout)
        return await self._core.transfer_leader(None if to is None else check_id("to", to), seconds)

    def leading(self) -> Leading:
        """Iterate over the terms in which this node leads and has caught up.

        The body of an `async with term` is cancelled when the term ends.

        ```python
        async for term in node.leading():
            async with term:
                await job()
        ```

        Raises `NodeClosedError` or `FatalError` at once if the node is not running; when it is closed later, the
        iteration ends.
        """
        return Leading(self._answering())

    # About the node

    def status(self) -> Status:
        """Return figures about this node, as of its last round. Never waits.

        Also when it has ended: the role is then "closed", or "stopped" if it stopped by itself.
        """
        return from_core(self._core.status())

    @property
    def id(self) -> int:
        """This node's id. One with a `name` has it once it is started; `NodeClosedError` before."""
        if self._id == 0:
            raise self._not_running()
        return self._id

    @property
    def address(self) -> str:
        """The address this node listens on, "host:port"."""
        if self._address is None:
            raise self._not_running()
        return self._address

    @property
    def config(self) -> Config:
        """What the node was configured with."""
        return self._config

    @property
    def state_machine(self) -> StateMachine[R]:
        """The state machine; reading it right after `read_barrier` is linearizable."""
        return self._state_machine

    def __repr__(self) -> str:
        """Name the node and where it listens, or why it does not."""
        return f"<aioraft.Node {self._who.removeprefix('node ')} of {self._cluster!r}: {self._where()}>"

    def _where(self) -> str:
        try:
            stopped = None if self._running is None else self._running.stopped
        except WrongLoopError:  # whoever debugs another thread or a forked process still sees a name
            return f"of another thread or process, {self._address}"
        if isinstance(stopped, FatalError):
            return "stopped"
        if self._closing:
            return "closed"
        return self._address or "not started"

    @property
    def _who(self) -> str:
        """What errors call this node, which may have no id yet."""
        return f"node {self._id}" if self._seeds is None or self._id else f"node {self._seeds.name!r}"

    @property
    def _core(self) -> Core:
        """The running core; it answers for itself once it is closed."""
        if self._running is None:
            raise self._not_running()
        return self._running

    def _answering(self) -> Core:
        """The running core, unless it is closed, or about to be, or has stopped."""
        core = self._core
        stopped = core.stopped
        if stopped is not None:
            refusal = copy.copy(stopped)  # each time with a traceback of its own
            if isinstance(refusal, RaftError):
                refusal.outcome = Outcome.NOT_COMMITTED
            raise refusal from stopped.__cause__
        if self._closing:
            raise self._not_running()
        return core

    def _not_running(self) -> NodeClosedError:
        if self._closing:
            return NodeClosedError(f"{self._who} is closed")
        return NodeClosedError(f"{self._who} is not started: use `async with node:` or `await node.start()` first")


def _trouble(status: Status) -> str:
    """Say why there may be no leader."""
    troubles = "; ".join(f"node {peer.id}: {peer.trouble}" for peer in status.peers if peer.trouble is not None)
    if status.role == "forming":
        return f"the cluster is not formed yet, which takes all its members once; {troubles or 'it is being formed'}"
    if troubles:
        return f"it is not connected to {troubles}"
    return "check that a majority of members is up"


async def _to_the_end(future: asyncio.Future[None]) -> None:
    """Wait until `future` is done, however often this task is cancelled meanwhile; then let the cancellation go on."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if not future.cancelled():
        future.exception()  # looked at, so that asyncio does not report it
    if cancelled is not None:
        raise cancelled
