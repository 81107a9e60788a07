"""`Commits`: the entries applied here, read at the reader's pace."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from ._errors import NodeClosedError, ReentrantCallError

if TYPE_CHECKING:
    from ._core import Core, Entry

__all__ = ["Commits"]

_SLICE_BYTES = 256 * 1024


class Commits(AsyncIterator["Entry"]):
    """Iterates over the entries that this node has applied, in the order of the log. Made by `Node.commits`.

    It is a cursor into the log, not a queue: a reader that stops costs nothing, and a wait that is cancelled (or
    ended by `asyncio.timeout`) has consumed nothing, so that the iteration can go on.

    Ends when the node is closed; raises `FatalError` when it has stopped by itself, and `Compacted` when the entries
    behind the cursor are no longer in the log. For one task at a time.
    """

    def __init__(self, core: Core, after: int) -> None:
        """Read behind index `after`."""
        self._core = core
        self._through = after  # everything up to here is handed out, or lies in _buffer
        self._position = after
        self._buffer: list[Entry] = []  # reversed: the next one is at the end
        self._reading = False

    @property
    def position(self) -> int:
        """The index through which entries were handed out: `commits(after=position)` goes on behind it, also later."""
        return self._position

    def __aiter__(self) -> Commits:
        """Return self: breaking out of a loop and entering another goes on behind the cursor."""
        return self

    async def __anext__(self) -> Entry:
        """Return the next entry, waiting until it is applied."""
        while not self._buffer:
            self._buffer = await self._fetch()
            self._buffer.reverse()
        entry = self._buffer.pop()
        self._position = entry.index if self._buffer else self._through
        return entry

    def batches(self) -> AsyncIterator[list[Entry]]:
        """Iterate over the same entries with the same cursor, in lists (never empty) of what is applied by then."""
        return _Batches(self)

    async def _next_batch(self) -> list[Entry]:
        batch = self._buffer[::-1]
        self._buffer = []
        while not batch:
            batch = await self._fetch()
        self._position = self._through
        return batch

    async def _fetch(self) -> list[Entry]:
        """Read a slice behind `_through`, waiting until something is applied there; it may hold no commands."""
        if self._reading:
            raise ReentrantCallError("two tasks read from the same commits() at once: make one for each")
        self._reading = True
        try:
            if self._core.applied <= self._through:
                await self._core.wait_applied(self._through)
            entries, through = await self._core.read_applied(self._through, _SLICE_BYTES)
        except NodeClosedError:
            raise StopAsyncIteration from None
        finally:
            self._reading = False
        # No await from here on: what was read is either handed out or still behind the cursor.
        self._through = max(self._through, through)
        return entries


class _Batches(AsyncIterator[list["Entry"]]):
    """The iterator of `Commits.batches`; a class, because a generator would not survive a cancelled wait."""

    def __init__(self, commits: Commits) -> None:
        self._commits = commits

    def __aiter__(self) -> _Batches:
        return self

    async def __anext__(self) -> list[Entry]:
        return await self._commits._next_batch()
