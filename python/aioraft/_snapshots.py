"""Snapshots, on the application's side: from what `snapshot` returns into a `Capture`, and from a file into `restore`.

The core calls `take` and `restore` on the event loop, at their place among the calls of `apply`. What `take` begins
goes on behind it: a single value is handed over at once, an iterable is pulled on the loop in slices, a callable runs
in a thread. None of them is a task, so that nobody's `cancel` meets them and a loop that ends has no word for them.
"""

from __future__ import annotations

import asyncio
import contextvars
import io
import logging
import threading
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from ._errors import shown

if TYPE_CHECKING:
    from ._core import Capture, Chunks, Core
    from ._state_machine import StateMachine

__all__ = ["Chunk", "SnapshotData", "restore", "take"]

Chunk: TypeAlias = bytes | bytearray | memoryview
"""A part of a state. `bytes` are used as they are; the others, which may change, are copied."""

SnapshotData: TypeAlias = Chunk | Iterable[Chunk] | Callable[[], Chunk | Iterable[Chunk]]
"""What `StateMachine.snapshot` returns: the whole state, its chunks, or what a thread is to call for either."""

_SLICE_S = 0.001
"""How long an iterable is pulled before other tasks get their turn, unless a chunk takes longer: on the loop, and in a
thread, which has the GIL meanwhile."""

_PAUSE_S = 0.0001
"""How long a thread that serialises then lets go of the GIL: long enough for a loop that waits for it to get it.

Otherwise each turn of the loop would wait for the interpreter's switch interval, 5 ms, unless the thread lets go by
itself. Letting go for no time does not do: whoever lets go takes it again before another thread has woken up.
"""

_CHUNK = (bytes, bytearray, memoryview)

_PASSED_ON = (KeyboardInterrupt, SystemExit)
"""The loop's to handle, as from any of its callbacks."""

_log = logging.getLogger("aioraft.snapshot")


def take(core: Core, machine: StateMachine[Any], capture: Capture) -> None:
    """Ask `machine` for its snapshot, and see to it that `capture` gets it. Raises what ends the program only."""
    loop = asyncio.get_running_loop()
    try:
        returned: Any = machine.snapshot()
        if _is(returned, *_CHUNK):
            _write_value(capture, returned)
        elif callable(returned) and not _is(returned, Iterable):
            _start_thread(capture, returned)
        else:
            _Pump(core, capture, _as_iterator(returned), loop).start()
    except BaseException as error:
        _fail(capture, error)
        if isinstance(error, _PASSED_ON):
            raise


class _Pump:
    """Pulls an iterable on the event loop, a slice at a time, as the disk takes it."""

    def __init__(self, core: Core, capture: Capture, chunks: Iterator[object], loop: asyncio.AbstractEventLoop) -> None:
        self._core = core
        self._capture = capture
        self._chunks = chunks
        self._loop = loop
        self._context = contextvars.copy_context()  # always the same one, as for a generator in a task

    def start(self) -> None:
        """Pull the first chunk at once: a generator captures the state in front of its first `yield`."""
        self._capture.open(chunked=True)
        self._context.run(self._pull, until=0.0)

    def _pull(self, *, until: float | None = None) -> None:
        if until is None:
            until = time.monotonic() + _SLICE_S
        try:
            for chunk in self._chunks:
                has_room = self._capture.write(_as_bytes(chunk))
                if not has_room:
                    room = self._core.wait_capture_room(self._capture)
                    room.add_done_callback(lambda _: self._go_on(), context=self._context)
                    return
                if time.monotonic() >= until:
                    self._loop.call_soon(self._go_on, context=self._context)
                    return
            self._capture.finish()
        except BaseException as error:
            _fail(self._capture, error)
            if isinstance(error, _PASSED_ON):
                raise

    def _go_on(self) -> None:
        if self._capture.is_over:
            _close(self._chunks)
        else:
            self._pull()


def _start_thread(capture: Capture, serialise: Callable[[], object]) -> None:
    context = contextvars.copy_context()
    # A daemon, so that the interpreter need not wait for it.
    threading.Thread(
        target=context.run, args=(_serialise, capture, serialise), name="aioraft-serialise", daemon=True
    ).start()


def _serialise(capture: Capture, serialise: Callable[[], object]) -> None:
    """Run in a thread of its own, to its end or to that of `capture`."""
    try:
        returned: Any = serialise()
        if _is(returned, *_CHUNK):
            _write_value(capture, returned)
            return
        chunks = _as_iterator(returned)
        capture.open(chunked=True)
        until = time.monotonic() + _SLICE_S
        for chunk in chunks:
            if not capture.write(_as_bytes(chunk)):
                capture.wait_room()
                until = time.monotonic() + _SLICE_S
            elif time.monotonic() >= until:
                time.sleep(_PAUSE_S)
                until = time.monotonic() + _SLICE_S
            if capture.is_over:
                _close(chunks)
                return
        capture.finish()
    except BaseException as error:
        _fail(capture, error)


def _write_value(capture: Capture, value: Chunk) -> None:
    capture.open(chunked=False)
    capture.write(_as_bytes(value))
    capture.finish()


def _as_iterator(returned: Any) -> Iterator[object]:
    """Iterate over `returned`, unless it is of a type that is surely a mistake."""
    if _is(returned, Iterable) and not _is(returned, str, Mapping):
        return iter(returned)
    if _is(returned, Coroutine):
        returned.close()  # nobody will await it
    if _is(returned, Awaitable, AsyncIterable):
        raise TypeError(f"snapshot() returned {shown(returned)}, which nobody awaits: make it plain, not async")
    raise TypeError(
        f"snapshot() returned {shown(returned)}: it must be bytes (such as json.dumps(...).encode()), an iterable of "
        "chunks of bytes, or a plain callable that returns one of these"
    )


def _as_bytes(chunk: Any) -> bytes:
    if type(chunk) is bytes:
        return chunk
    if _is(chunk, *_CHUNK):
        return bytes(chunk)
    raise TypeError(f"a chunk of snapshot() is {shown(chunk)}: it must be bytes, a bytearray or a memoryview")


def _is(value: object, *kinds: type) -> bool:
    """As isinstance, of values of which type checkers are to know no more than before."""
    return isinstance(value, kinds)


def _fail(capture: Capture, error: BaseException) -> None:
    """End `capture`, and say so: its node goes on, and perhaps nobody waits for it."""
    if not capture.is_over and not isinstance(error, _PASSED_ON):
        _log.error(
            "the snapshot of index %d failed, and the node goes on: snapshot() raised %s",
            capture.index,
            shown(error),
            exc_info=error,
            extra={"aioraft": {"index": capture.index}},
        )
    capture.fail(f"snapshot() raised {shown(error)}")


def _close(chunks: Iterator[object]) -> None:
    """Let a generator run its `finally` now; what it says there concerns nobody any more."""
    close = getattr(chunks, "close", None)
    if close is not None:
        try:
            close()
        except Exception:
            _log.debug("an iterable of snapshot() failed while it was closed", exc_info=True)


def restore(machine: StateMachine[Any], chunks: Chunks, is_chunked: bool) -> None:
    """Give `machine` its snapshot, in the form in which one like it has returned it."""
    if is_chunked:
        machine.restore(iter(chunks))
        return
    value = io.BytesIO()  # grows in place, and gives the value away without a copy
    for chunk in chunks:
        value.write(chunk)
    machine.restore(value.getvalue())
