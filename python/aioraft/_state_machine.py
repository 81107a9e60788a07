"""`StateMachine`: what a user writes."""

from __future__ import annotations

import abc
import inspect
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from ._core import Entry
from ._errors import ConfigError, FatalError, shown
from ._snapshots import SnapshotData

__all__ = ["StateMachine", "ask_durable", "check", "check_factory", "claim", "has_batch", "has_snapshot", "shared"]

R = TypeVar("R")


class StateMachine(abc.ABC, Generic[R]):
    """The application's state, changed by one entry after the other; `R` is what `apply` returns.

    Every node has an instance of its own and applies the same entries in the same order, so `apply` must be
    deterministic: what it does may depend on the state and the entry only (never on a local clock, on randomness,
    or on the iteration order of a set). It runs on the event loop's thread, is plain (never `async`), and the loop
    stands still meanwhile; consensus does not. Its context (`contextvars`) is one copy of that in which the node was
    started, not the proposer's, which other replicas do not have.

    An instance serves one node, once: after a restart a node starts from a fresh one, restores its last snapshot and
    applies what the log holds behind it. A state that is durable itself goes on where it is (`durable_applied`).
    """

    __slots__ = ("__weakref__",)

    @abc.abstractmethod
    def apply(self, entry: Entry) -> R:
        """Change the state by one entry and return the result of its `propose`.

        An `Exception` is a result as well: it reaches the proposer as `ApplyError` from it, other nodes log it, and
        the entry counts as applied. So raise before changing anything. MemoryError, RecursionError, OSError, groups
        that hold one of them, and other BaseExceptions may differ from replica to replica: they stop this node with
        the entry unapplied. An awaitable is no result: a TypeError takes its place.
        """

    def apply_batch(self, entries: Sequence[Entry]) -> Sequence[R | Exception]:
        """Override to apply many entries in one call: one result, or exception instance, for each, in order.

        What it raises, or a result of another length, stops this node, since it cannot be known which entries count.
        """
        return [self.apply(entry) for entry in entries]

    def snapshot(self) -> SnapshotData:
        """Override, with `restore`, so that the log need not be kept whole: return the state as of the last `apply`.

        Called on the event loop between two calls of `apply`, when `Config.snapshot_entries` or `snapshot_bytes` say
        so, or `Node.snapshot`. It returns one of these; `restore` gets bytes for bytes, and chunks for chunks:

        - bytes: the whole state. The simplest, for a state whose serialisation is a matter of milliseconds.
        - an iterable of chunks of bytes, such as a generator: pulled on the loop, a millisecond at a time, as the disk
          takes it. A chunk that is yielded is not touched again, so that a state of any size takes little memory.
        - a callable: called in a thread of its own, where it returns bytes or an iterable, which is iterated there. For
          what takes long to serialise, and lets go of the GIL or is written in Python.

        What it returns must not see what `apply` changes afterwards (a copy, or a structure that is replaced and never
        changed). A generator may do so in front of its first `yield`, which runs at once, and a callable may not.

        Whatever it raises fails this snapshot only: it is logged, `Node.snapshot` raises `SnapshotError`, and the log
        keeps growing until one succeeds. Without this method the log is kept whole.
        """
        raise NotImplementedError(f"{type(self).__name__} has no snapshot()")

    def restore(self, data: Any) -> None:
        """Override, with `snapshot`: replace the whole state by what `snapshot` returned, here or on another node.

        `data` is bytes where it returned bytes, else an iterator over the same chunks, each of them bytes, to be read
        before this returns. Called at a start, before anything is applied, and later when this node is so far behind
        that the others no longer have the entries that it lacks. It runs on the event loop, like `apply`.

        What it raises stops this node, which cannot go on without that state.
        """
        raise NotImplementedError(f"{type(self).__name__} has no restore()")

    def durable_applied(self) -> tuple[int, int] | None:
        """Override if the state outlives the process by itself: return where it stands, as (index, term), or None.

        These are `Entry.index` and `Entry.term` of the last entry whose effect is durable, which `apply` stores
        together with that effect, atomically. Asked once, by `Node.start`: what comes after that entry is applied,
        nothing up to it is applied again, and the start is refused if the log has no such entry, as when the two do not
        belong together. A snapshot that is ahead of it is restored as everywhere.
        """
        return None


# By identity, not by equality: a state machine may well be an unhashable dataclass.
_used: weakref.WeakValueDictionary[int, StateMachine[Any]] = weakref.WeakValueDictionary()


def claim(machine: StateMachine[Any]) -> None:
    """Give `machine` to one node; raises `ConfigError` for anything but a fresh, plain state machine."""
    check(machine)
    if _used.get(id(machine)) is machine:
        raise shared(machine)
    _used[id(machine)] = machine


def shared(machine: StateMachine[Any]) -> ConfigError:
    """Return the error for a state machine that two nodes were given."""
    return ConfigError(
        f"state_machine = {shown(machine)} belongs to another node already: make a new instance for each node"
    )


def check(machine: StateMachine[Any]) -> None:
    """Raise `ConfigError` for anything but a plain state machine."""
    if isinstance(machine, type) and issubclass(machine, StateMachine):
        raise ConfigError(
            f"state_machine = {machine.__name__}: it must be an instance, such as {machine.__name__}(), not the class"
        )
    if not isinstance(machine, StateMachine):
        raise ConfigError(
            f"state_machine = {shown(machine)}: it must be an instance of a subclass of aioraft.StateMachine"
        )
    for method in ("apply", "apply_batch", "snapshot", "restore", "durable_applied"):
        if _is_async(getattr(machine, method)):
            raise ConfigError(
                f"state_machine.{method} is async: it must be a plain method, since every node runs it at the same "
                "place in the log; await what it decided after `propose`"
            )
    if has_snapshot(machine) and not _overrides(machine, "restore"):
        raise ConfigError(
            f"state_machine = {shown(machine)} has snapshot() and no restore(): a node that starts from its snapshot, "
            "or is sent one, needs both"
        )
    if inspect.isgeneratorfunction(machine.restore):
        raise ConfigError("state_machine.restore is a generator, of which nothing would run: leave out its `yield`")


def check_factory(factory: Callable[[], StateMachine[Any]]) -> None:
    """Raise `ConfigError` for what makes no state machines."""
    if not callable(factory):
        raise ConfigError(
            f"factory = {shown(factory)}: each node needs a state machine of its own, so give what makes one, such as "
            "the class"
        )


def has_batch(machine: StateMachine[Any]) -> bool:
    """Whether the class of `machine` overrides `apply_batch`."""
    return _overrides(machine, "apply_batch")


def has_snapshot(machine: StateMachine[Any]) -> bool:
    """Whether the class of `machine` overrides `snapshot`."""
    return _overrides(machine, "snapshot")


def ask_durable(machine: StateMachine[Any]) -> tuple[int, int] | None:
    """Return what `durable_applied` says; raises `FatalError` from what it raises, `ConfigError` for a wrong answer."""
    try:
        answer = machine.durable_applied()
    except Exception as error:
        raise FatalError(
            f"durable_applied raised {shown(error)}, so the node has not started: see the cause"
        ) from error
    if answer is None or _is_position(answer):
        return answer
    raise ConfigError(
        f"durable_applied() returned {shown(answer)}: it must be the (index, term) of an entry that was applied, or "
        "None if there is none yet"
    )


def _is_position(answer: Any) -> bool:
    return (
        answer.__class__ is tuple
        and len(answer) == 2
        and all(type(number) is int and 0 < number < 2**64 for number in answer)
    )


def _overrides(machine: StateMachine[Any], method: str) -> bool:
    return getattr(type(machine), method) is not getattr(StateMachine, method)


def _is_async(method: object) -> bool:
    return inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)
