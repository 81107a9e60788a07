"""What tests that look at a running node share: waiting for what nobody calls back about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from processes import DEADLINE_S


async def until(condition: Callable[[], bool], what: str) -> None:
    """Look again and again until `condition` holds; fails with `what` after `DEADLINE_S`."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE_S:g} s: {what}") from None
