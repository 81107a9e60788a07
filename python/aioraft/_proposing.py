"""Proposing as room allows: what stands between `Node.propose_many` and the core."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from ._errors import FatalError, NodeClosedError, ProposalTimeoutError, ProposalTooLargeError, RaftError, shown

if TYPE_CHECKING:
    from ._core import Core

__all__ = ["Data", "as_items", "propose_slices", "wait_for_room"]

Data: TypeAlias = bytes | bytearray | memoryview
"""What can be proposed. It is copied at the call."""

# A long list goes to the driver in slices, so that back-pressure holds within one call.
_SLICE_ITEMS = 1024
_SLICE_BYTES = 1024 * 1024


def as_items(items: Iterable[Data]) -> list[Data]:
    """Return `items` as a list; raises TypeError, naming the item, if one of them is no bytes."""
    if isinstance(items, (str, bytes, bytearray, memoryview)) or not isinstance(items, Iterable):
        raise TypeError(
            f"propose_many(items = {shown(items)}): it takes several commands, such as [b'one', b'two']; "
            "propose() takes a single one"
        )
    listed = list(items)
    for place, item in enumerate(listed):
        if not isinstance(item, (bytes, bytearray, memoryview)):
            raise TypeError(
                f"propose_many: items[{place}] = {shown(item)} is not bytes, a bytearray or a memoryview: "
                "encode it first, such as with str.encode or json.dumps(...).encode(); nothing was proposed"
            )
    return listed


async def wait_for_room(core: Core, timeout: float | None) -> float | None:
    """Wait until there is room for a proposal; return what is left of `timeout`."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    try:
        async with asyncio.timeout(timeout):
            while core.full:
                await core.wait_room()
    except TimeoutError as error:
        raise ProposalTimeoutError(
            f"the proposal waited {timeout} s for room and was not sent: more is proposed than the cluster commits; "
            "propose less at once, or raise Config.max_pending_proposals or max_pending_bytes"
        ) from error
    return None if timeout is None else max(0.0, timeout - (loop.time() - start))


async def propose_slices(core: Core, items: list[Data], timeout: float | None, max_entry_bytes: int) -> list[Any]:
    """Hand `items` over as room allows; one result or exception for each."""
    slices = _slices(items, max_entry_bytes)
    loop = asyncio.get_running_loop()
    end = math.inf if timeout is None else loop.time() + timeout
    sent: list[asyncio.Future[list[Any]]] = []
    unsent: list[RaftError] = []
    try:
        for part in slices:
            if unsent:
                unsent += unsent[:1] * len(part)
                continue
            left = None if timeout is None else max(0.0, end - loop.time())
            try:
                if core.full:
                    left = await wait_for_room(core, left)
                sent.append(core.propose_many(part, left))
            except (ProposalTimeoutError, NodeClosedError, FatalError) as error:
                if not sent:
                    raise
                unsent += [error] * len(part)
        results: list[Any] = []
        for future in sent:
            results += await future
        return results + unsent
    finally:
        for future in sent:
            future.cancel()  # changes nothing unless this call was cancelled


def _slices(items: list[Data], max_entry_bytes: int) -> list[list[Data]]:
    if len(items) <= _SLICE_ITEMS and sum(map(len, items)) <= _SLICE_BYTES:
        return [items] if items else []
    # The core refuses a slice as a whole; so that it can be said of the call, every item is looked at first.
    sizes = [memoryview(item).nbytes for item in items]
    if max(sizes) > max_entry_bytes:
        raise ProposalTooLargeError(
            f"an item has {max(sizes)} bytes, and Config.max_entry_bytes = {max_entry_bytes}: nothing was proposed; "
            "split it, or raise the limit on all nodes"
        )
    slices: list[list[Data]] = [[]]
    slice_bytes = 0
    for item, size in zip(items, sizes, strict=True):
        if len(slices[-1]) >= _SLICE_ITEMS or slice_bytes >= _SLICE_BYTES:
            slices.append([])
            slice_bytes = 0
        slices[-1].append(item)
        slice_bytes += size
    return slices
