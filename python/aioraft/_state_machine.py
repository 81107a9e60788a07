"""`StateMachine`: what a user writes."""

from __future__ import annotations

import abc
import inspect
import weakref
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from ._core import Entry
from ._errors import ConfigError, shown

__all__ = ["StateMachine", "check", "claim", "has_batch", "shared"]

R = TypeVar("R")


class StateMachine(abc.ABC, Generic[R]):
    """The application's state, changed by one entry after the other; `R` is what `apply` returns.

    Every node has an instance of its own and applies the same entries in the same order, so `apply` must be
    deterministic: what it does may depend on the state and the entry only (never on a local clock, on randomness,
    or on the iteration order of a set). It runs on the event loop's thread, is plain (never `async`), and the loop
    stands still meanwhile; consensus does not. Its context (`contextvars`) is one copy of that in which the node was
    started, not the proposer's, which other replicas do not have.

    An instance serves one node, once: after a restart a node starts from a fresh one and applies the log again.
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

    def snapshot(self) -> Any:
        """Return the whole state, to be given to `restore` elsewhere. Not called by this version, which keeps the log.

        The state is returned as bytes, as an iterable of chunks, or as a callable that a worker thread runs. What is
        returned must not observe later calls of `apply`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no snapshot()")

    def restore(self, data: Any) -> None:
        """Replace the whole state by what `snapshot` returned, on any node. Not called by this version."""
        raise NotImplementedError(f"{type(self).__name__} has no restore()")


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
    for method in ("apply", "apply_batch", "snapshot", "restore"):
        if _is_async(getattr(machine, method)):
            raise ConfigError(
                f"state_machine.{method} is async: it must be a plain method, since every node runs it at the same "
                "place in the log; await what it decided after `propose`"
            )


def has_batch(machine: StateMachine[Any]) -> bool:
    """Whether the class of `machine` overrides `apply_batch`."""
    own: Any = type(machine)
    base: Any = StateMachine
    return own.apply_batch is not base.apply_batch


def _is_async(method: object) -> bool:
    return inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)
