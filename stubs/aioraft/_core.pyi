"""
The extension module behind the `aioraft` package. Private: use `aioraft` instead.
"""

from asyncio import AbstractEventLoop, Future
from collections.abc import Iterable
from typing import Any, Final, final

__all__ = ["AdminClient", "Capture", "Chunks", "Core", "Entry", "Faults", "World", "inspect", "recorded", "recover"]

@final
class AdminClient:
    """
    Asks one node, at `address` ("host:port"), of the cluster of that name, each time over a connection of its own. Private:
    the command `aioraft` is made of it.

    Its methods block, with the GIL released, for `timeout` seconds and a moment at most. They raise `aioraft._admin.AdminError`,
    and what a signal handler raises: Ctrl-C ends them within a moment. What the node has begun it then goes on with. May
    be used from any thread.
    """
    def __new__(cls, /, address: "str", *, cluster: "str") -> AdminClient: ...
    def change(self, /, changes: "list[tuple[str, int, str, dict[str, str] | None]]", timeout: "float") -> tuple[int, list[int]]:
        """
        Change the membership, all of it at once; returns the index of the entry that did, and the ids concerned, in that
        order. The changes are as in `Core.change_members`.
        """
    def give_up(self, /) -> None:
        """
        End the calls under way, on whichever threads, within a moment; each raises `AdminError`.
        """
    def join(self, /, name: "str", identity: "int", address: "str", metadata: "dict[str, str]", timeout: "float") -> tuple[int, dict[int, str]]:
        """
        Ask for a place in the cluster for a node of that name, whose new data directory has that identity; returns its id,
        and where the members are dialled, by their ids. Asked again, it gives the same place.
        """
    def members(self, /, timeout: "float") -> dict[str, Any]:
        """
        Who the members are, as far as the node knows: its "leader", "incarnation" and "members".
        """
    def snapshot(self, /, timeout: "float") -> int:
        """
        Have the node take a snapshot; returns its index once it is durable.
        """
    def status(self, /, timeout: "float") -> dict[str, Any]:
        """
        How the node is: figures under the names of `aioraft.Status`, and its "cluster", "address", "version" and "trouble".
        """
    def transfer_leader(self, /, to: "int | None", timeout: "float") -> int:
        """
        Have node `to` lead in the place of the node that is asked, or whoever is furthest; returns who leads.
        """

@final
class Capture:
    """
    A snapshot that the application is asked for. Private: see `aioraft._snapshots`.

    May be used from any thread of its process. What is written after the snapshot has failed, or its node has ended,
    goes nowhere. Dropped unfinished, it fails.
    """
    def fail(self, /, reason: "str") -> None:
        """
        There is no snapshot, or no more of it: `reason` is a clause for `SnapshotError`.
        """
    def finish(self, /) -> None:
        """
        That was the last chunk.
        """
    @property
    def index(self, /) -> int:
        """
        The snapshot is to be of the state as of this index.
        """
    @property
    def is_over(self, /) -> bool:
        """
        Whether nothing is wanted any more: it was finished, it has failed, or its node has ended.
        """
    def open(self, /, *, chunked: "bool") -> None:
        """
        Say what comes: chunks whose boundaries count, or a single value, in however many parts. Once, before the first.
        """
    def wait_room(self, /) -> None:
        """
        Block until there is room, without the GIL. For other threads than the event loop's.
        """
    def write(self, /, chunk: bytes) -> bool:
        """
        Hand over a chunk; a large one is kept alive and not copied. Never blocks; False if there is no room for more, so that
        `Core.wait_capture_room` or `wait_room` should come first.
        """

@final
class Chunks:
    """
    The chunks of a snapshot, read one at a time as they are asked for. Private: see `aioraft._snapshots`.
    """
    def __iter__(self, /) -> Chunks:
        """
        Itself.
        """
    def __next__(self, /) -> bytes:
        """
        The next chunk. Raises `FatalError` if the file is damaged, and ValueError once `restore` has returned.
        """

@final
class Core:
    """
    A node, on the side of its event loop. Private: use `aioraft.Node`.

    It belongs to the loop, thread and process in which it was made; anywhere else every method raises
    `WrongLoopError`. Methods that return a future raise at once what can be known at once; a future that is cancelled
    stops the waiting, not the work. A node that has stopped by itself raises `FatalError`, one that is closed (or not
    started) `NodeClosedError`.

    `apply` runs on the loop's thread, in a copy of the context (`contextvars`) in which `start` was called: always the
    same copy, so that what one `apply` sets there the next one finds, and nobody else.

    `listen` is "host:port", or the file descriptor of a bound TCP socket, which is duplicated. `config` has the
    attributes of `aioraft.Config`. With `batch` the entries go to `state_machine.apply_batch`, 256 at most in a call.
    With `snapshots` the state machine is asked for them; `durable_applied` is what it says by its method of that name.
    With `echo` there is no Raft and no cluster: what is proposed to a single member is applied at once, and several
    members never have a majority; it is there to measure and to test the way between asyncio and the driver.
    """
    def __new__(cls, /, *, loop: AbstractEventLoop, node_id: "int", members: "dict[int, str]", cluster: "str", data_dir: "str | None", listen: "str | int", advertise: "str | None", config: Any, state_machine: Any, batch: "bool" = False, snapshots: "bool" = False, durable_applied: "tuple[int, int] | None" = None, echo: "bool" = False, faults: "Faults | None" = None, joins: "tuple[str, int | None] | None" = None) -> Core: ...
    def _drain(self, /) -> None:
        """
        Called by the loop when the driver has something to say.
        """
    def _flush(self, /) -> None:
        """
        Called by the loop when the tasks that may propose together have run.
        """
    def _reap(self, /) -> None:
        """
        Called by the loop until the driver's thread has ended.
        """
    @property
    def applied(self, /) -> int:
        """
        The index through which the state machine here has applied.
        """
    def change_members(self, /, changes: "list[tuple[str, int, str, dict[str, str] | None]]", timeout: "float | None") -> Future[tuple[int, list[int]]]:
        """
        Change the members, all of `changes` at once: each is ("add", "promote", "demote", "remove" or "update", id, address,
        metadata); "add" and "update" take the last two, and "add" an id of 0 for one of the cluster's choice. The future
        resolves with the index of the change and the ids concerned, or fails with `MembershipError` or
        `MembershipTimeoutError`. `timeout` is in seconds; None waits for ever.
        Raises `ReentrantCallError` inside `apply`. Cancelling stops the waiting, not the change.
        """
    def close(self, /, drain: "float") -> Future[None]:
        """
        Stop: a leader hands over, for which it takes half of `drain` at most; calls in flight get `drain` seconds to end,
        then fail with `NodeClosedError`. The future resolves when
        the driver's thread has ended, and never fails. May be called again; a shorter `drain` takes over. Cancelling
        stops the waiting, not the closing. Never blocks. Once `drain` is over nothing is applied any more, not even the
        next entry when it was `apply` that called with 0.
        """
    @property
    def full(self, /) -> bool:
        """
        Whether as much is pending as `Config.max_pending_proposals` or `max_pending_bytes` allow. `propose` does not
        look at it.
        """
    @property
    def leadership(self, /) -> tuple[int, int, int | None, int | None]:
        """
        The newest known leadership: (version, term, leader, leading term). The version counts the changes. The leading
        term is set while this node leads and its state machine has applied what was committed before that term.
        """
    def propose(self, /, data: bytes | bytearray | memoryview, timeout: "float | None") -> Future[Any]:
        """
        Propose `data`, which is copied; the future resolves with what `apply` returned here, on this node.

        `timeout` is in seconds; None waits for ever. Raises TypeError (not bytes), `ProposalTooLargeError`,
        `ReentrantCallError` (inside `apply`). The future fails with `ProposalTimeoutError` or `NotCommittedError` (not
        committed), `OutcomeUnknownError` (it may be applied), `ApplyError` or `AppliedWithoutResultError` (it is
        applied). Cancelling stops the waiting, not the proposal.
        """
    def propose_many(self, /, items: Iterable[bytes | bytearray | memoryview], timeout: "float | None") -> Future[list[Any]]:
        """
        Propose each of `items`, without order or atomicity among them. The future resolves with a list that holds, for
        each item in order, its result or its exception. All else as with `propose`; what is raised at once concerns
        the whole list, of which nothing is proposed then.
        """
    def read_applied(self, /, after: "int", max_bytes: "int") -> Future[tuple[list[Entry], int]]:
        """
        Read applied entries behind index `after` again, up to about `max_bytes` of them. The future resolves with
        (entries, the index through which they are complete), or fails with `Compacted`.
        """
    def read_barrier(self, /, timeout: "float | None") -> Future[int]:
        """
        Wait until the state machine here holds everything that was committed before this call. The future resolves
        with the index read at, or fails with `ReadTimeoutError`. `timeout` is in seconds; None waits for ever. Raises
        `ReentrantCallError` inside `apply`.
        """
    def snapshot(self, /, timeout: "float | None") -> Future[int]:
        """
        Take a snapshot, or wait for the one that is being taken. The future resolves with its index once it is durable,
        or fails with `SnapshotError` or `SnapshotTimeoutError`. `timeout` is in seconds; None waits for ever. Raises
        `SnapshotError` if the state machine has none, `ReentrantCallError` inside `apply`. Cancelling stops the waiting,
        not the snapshot.
        """
    def start(self, /) -> Future[str]:
        """
        Start the driver. The future resolves with the bound "host:port" once the node listens, or fails with
        `FatalError` (the log cannot be opened, say) or `ConfigError` (the directory is another node's, say). Raises
        RaftError if it was started before.
        Cancelling does not stop the start: `close` does.
        """
    def status(self, /) -> dict[str, Any]:
        """
        Figures under the names of `aioraft.Status`' fields, as of the driver's last round. Never waits. The role is
        "stopped" once the node has stopped by itself and "closed" once it is closed, and its peers and their leader are
        no longer known then.
        """
    @property
    def stopped(self, /) -> BaseException | None:
        """
        Why the node answers no more: a `FatalError` if it stopped by itself, a `NodeClosedError` once it is closed,
        None before.
        """
    def transfer_leader(self, /, to: "int | None", timeout: "float | None") -> Future[int]:
        """
        Have `to` lead in the place of this node, or whoever is furthest. The future resolves with the id of the new
        leader, or fails with `TransferError` or `TransferTimeoutError`. `timeout` is in seconds; None waits for ever.
        Raises `ReentrantCallError` inside `apply`. Cancelling stops the waiting, not the transfer.
        """
    def wait_applied(self, /, beyond: "int") -> Future[None]:
        """
        Wait until `applied` is greater than `beyond`: a future.
        """
    def wait_capture_room(self, /, capture: Capture) -> Future[None]:
        """
        Wait until `capture` has room for a chunk, or is over: a future, which never fails.
        """
    def wait_leadership(self, /, version: "int") -> Future[None]:
        """
        Wait until the version of `leadership` differs from `version`: a future.
        """
    def wait_room(self, /) -> Future[None]:
        """
        Wait until it is no longer `full`: a future, resolved in the order of the calls, a bounded number at a time.
        Look at `full` again afterwards.
        """

@final
class Entry:
    """
    A committed command, as every node's state machine sees it. Immutable, comparable, hashable, can be pickled.

    Construct one to test a state machine without a cluster: `Entry(1, 1, b"...")`. Raises ValueError if `timestamp`
    is negative or not finite. `timestamp_ns`, if given, takes the place of `timestamp`, exact to the nanosecond.
    """
    __match_args__: Final[tuple[str, str, str, str]]
    """
    The positional arguments of a `case Entry(...)` pattern.
    """
    def __eq__(self, other: object, /) -> bool:
        """
        Whether the other entry is the same in every field.
        """
    def __getnewargs_ex__(self, /) -> "tuple[tuple[int, int, bytes], dict[str, int | float | None]]":
        """
        The arguments that make an equal entry, for pickle and copy.
        """
    def __hash__(self, /) -> int:
        """
        Agrees with equality.
        """
    def __new__(cls, /, index: "int", term: "int", data: "bytes", timestamp: "float" = 0.0, *, wall_time: "float | None" = None, timestamp_ns: "int | None" = None) -> Entry: ...
    def __repr__(self, /) -> str:
        """
        The entry; data beyond 64 bytes is left out.
        """
    @property
    def data(self, /) -> bytes:
        """
        What was proposed.
        """
    @property
    def index(self, /) -> int:
        """
        Its place in the log. Indexes grow; they are not contiguous, since the cluster's own entries lie between.
        """
    @property
    def term(self, /) -> int:
        """
        The term of the leader that appended it.
        """
    @property
    def timestamp(self, /) -> float:
        """
        Replicated time in seconds: the same on every node, and never less than that of an earlier entry. Only
        differences mean anything.
        """
    @property
    def timestamp_ns(self, /) -> int:
        """
        Replicated time in nanoseconds; see `timestamp`.
        """
    @property
    def wall_time(self, /) -> float | None:
        """
        The leader's wall clock, seconds since the Unix epoch, or None; for people: it may jump. Use `timestamp` to
        decide anything.
        """

@final
class Faults:
    """
    Faults of the network between nodes of one process, put in by tests. Private: use `aioraft.testing.Cluster`.

    Made once for all nodes of a cluster, and given to each `Core`. May be called from any thread.
    """
    def __new__(cls, /, seed: "int") -> Faults: ...
    def crash(self, /, node: "int") -> None:
        """
        This node ends within a moment as if its process were killed; its calls fail with `FatalError`.
        """
    def cut(self, /, source: "int", target: "int", is_cut: "bool" = True) -> None:
        """
        Nothing arrives at node `target` from node `source` any more, or it does again; connections stay up.
        """
    def delay(self, /, source: "int", target: "int", seconds: "float") -> None:
        """
        What node `target` gets from node `source` arrives `seconds` later, in its order.
        """
    def drop(self, /, source: "int", target: "int", share: "float") -> None:
        """
        This share of the messages from node `source` to node `target`, between 0 and 1, does not arrive.
        """
    def hang(self, /, node: "int", hangs: "bool") -> None:
        """
        The application of this node hangs, or goes on: meanwhile it hears of nothing, and applies nothing.
        """
    def heal(self, /) -> None:
        """
        Every way is whole, quick and reliable again.
        """

@final
class World:
    """
    A simulated minute of a cluster's life. Private: use `aioraft.testing.Simulation`.

    Raises ValueError if there are not 2 to 9 nodes.
    """
    def __new__(cls, /, seed: "int", nodes: "int") -> World: ...
    def run(self, /, guest: Any, record: "bool" = False) -> dict[str, Any]:
        """
        Let it happen, from the birth of the cluster to its end, and return figures about it.

        `guest.command(now)` returns the next command, bytes; `now` is virtual time in nanoseconds.
        `guest.start(now, node)` is called when a node starts and returns its replica. Once `replica.now` is set,
        `replica.apply(entry)`, or `replica.apply_batch(entries)` if `replica.is_batch`, is treated as a node treats a state
        machine. `replica.settle(value, error)` is told what each entry came to, in order, and
        `replica.refuse(message, error)` that the node stops with the next one unapplied.

        What `guest` and `replica` raise themselves ends the world and is raised here; so are signals' exceptions, within
        a moment, and what `apply` raises that is no Exception. Raises RaftError for a fault of aioraft itself.
        """
    @property
    def seed(self, /) -> int:
        """
        What decides everything in it.
        """
    @property
    def transcript(self, /) -> list[str]:
        """
        What happened in the last `run` that recorded it, a line each.
        """

def inspect(data_dir: "str") -> dict[str, Any]:
    """
    What a data directory holds, under the keys of `aioraft._cli._report.Report`. Private: use `aioraft inspect`.

    Changes nothing, and holds no lock. Reads the whole directory, without the GIL. Raises RaftError if it is no data
    directory, or cannot be read; damage is no error, but part of the report.
    """

def recorded(data_dir: "str") -> dict[str, Any] | None:
    """
    Whose data directory it is: "id", "cluster", "identity" and "stage" of its node; None if no node has been started there.
    Private.

    Without the GIL. Raises what the start of a node there raises: ConfigError if it can be no data directory, FatalError if
    it cannot be read.
    """

def recover(data_dir: "str", *, foresee: "bool") -> dict[str, Any]:
    """
    Makes the node of a data directory the only member of its cluster, or tells what that would do if `foresee`: under the
    keys of `aioraft recover --json`. Private: use `aioraft recover`.

    Without the GIL. Raises RaftError if it cannot be done; nothing has changed then.
    """
