"""Who leads: `Leadership` and its changes, and `Term`, which lives as long as this node leads."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._errors import NodeClosedError, RaftError

if TYPE_CHECKING:
    from ._core import Core

__all__ = ["Leadership", "LeadershipChanges", "Leading", "Term"]


@dataclasses.dataclass(frozen=True, slots=True)
class Leadership:
    """Who leads, as far as this node knows. A hint, never a lock: another node may know better already."""

    term: int
    """The current term."""
    leader: int | None
    """The id of its leader, if known."""


class LeadershipChanges(AsyncIterator[Leadership]):
    """Iterates over who leads: first what is known now, then each change. Made by `Node.leadership`.

    Latched: one who comes late, or reads slowly, gets the newest, and what lay between is left out. A cancelled wait
    loses nothing. Ends when the node is closed; raises `FatalError` when it has stopped by itself.
    """

    def __init__(self, core: Core) -> None:
        """Watch `core`."""
        self._core = core
        self._last: Leadership | None = None

    def __aiter__(self) -> LeadershipChanges:
        """Return self."""
        return self

    async def __anext__(self) -> Leadership:
        """Return the newest, waiting until it differs from what was returned last."""
        while True:
            version, term, leader, _ = self._core.leadership
            newest = Leadership(term, leader)
            if newest != self._last:
                self._last = newest
                return newest
            await _change(self._core, version)


class Leading(AsyncIterator["Term"]):
    """Iterates over the terms in which this node leads and has caught up, each once. Made by `Node.leading`.

    Ends when the node is closed; raises `FatalError` when it has stopped by itself.
    """

    def __init__(self, core: Core) -> None:
        """Watch `core`."""
        self._core = core
        self._last = 0

    def __aiter__(self) -> Leading:
        """Return self."""
        return self

    async def __anext__(self) -> Term:
        """Wait until this node leads, and has applied all that was committed before, in a term not returned before."""
        while True:
            version, _, _, leading = self._core.leadership
            if leading is not None and leading != self._last:
                self._last = leading
                return Term(self._core, leading)
            await _change(self._core, version)


async def _change(core: Core, version: int) -> None:
    try:
        await core.wait_leadership(version)
    except NodeClosedError:
        raise StopAsyncIteration from None


class Term:
    """A term in which this node leads. As a context manager, its body is cancelled when the node no longer does.

    The cancellation ends at the `async with`, as that of `asyncio.timeout` does, but without an exception: what
    stands behind it goes on. A cancellation from elsewhere passes through. When the node is closed or has stopped, it
    leads no more.

    A hint, never a lock: for a moment another node may lead already, and a body that does not await cannot be
    cancelled. What the body proposes is safe all the same.
    """

    def __init__(self, core: Core, number: int) -> None:
        """Watch whether `core` leads in term `number`."""
        self._core = core
        self._number = number
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._cancelled = False
        self._left = False
        self._change: asyncio.Future[None] | None = None
        self._first_look: asyncio.Handle | None = None

    @property
    def number(self) -> int:
        """The term."""
        return self._number

    @property
    def ended(self) -> bool:
        """Whether this node is known to lead in this term no more."""
        return self._cancelled or not self._leads()

    def __repr__(self) -> str:
        """Name the term and whether it has ended."""
        return f"<aioraft.Term {self._number}{' ended' if self.ended else ''}>"

    async def __aenter__(self) -> Term:
        """Watch over the body that follows."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a term can only be entered inside a task")
        if self._task is not None:
            raise RuntimeError("a term can be entered once: iterate over leading() for the next one")
        self._task = task
        self._cancelling = task.cancelling()
        # Not here and now: a task that cancels itself is cancelled at its next await, which may lie behind the body.
        self._first_look = asyncio.get_running_loop().call_soon(self._look)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Stop watching; swallow the cancellation if, and only if, it was ours alone. Never waits."""
        self._left = True
        if self._first_look is not None:
            self._first_look.cancel()
        if self._change is not None:
            self._change.cancel()
        if not self._cancelled or self._task is None:
            return False
        ours_alone = self._task.uncancel() <= self._cancelling
        return ours_alone and kind is not None and issubclass(kind, asyncio.CancelledError)

    def _leads(self) -> bool:
        return self._core.stopped is None and self._core.leadership[3] == self._number

    def _look(self, change: asyncio.Future[None] | None = None) -> None:
        """Runs from the loop, so the body is suspended at an await, which is where a cancellation reaches it."""
        if self._left or (change is not None and change.cancelled()):
            return
        failed = change is not None and change.exception() is not None
        if not failed and self._leads():
            try:
                self._change = self._core.wait_leadership(self._core.leadership[0])
            except RaftError:
                failed = True
            else:
                self._change.add_done_callback(self._look)
                return
        self._cancelled = True
        if self._task is not None:
            self._task.cancel(f"this node no longer leads in term {self._number}")
