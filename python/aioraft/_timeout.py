"""`Timeout`: how long a call waits, in seconds."""

from __future__ import annotations

import enum
import math
from typing import Any, Final, Literal, TypeAlias

from ._errors import ConfigError, shown

__all__ = ["DEFAULT_TIMEOUT", "DefaultTimeout", "Timeout", "check_timeout"]


class DefaultTimeout(enum.Enum):
    """The type of `DEFAULT_TIMEOUT`, which is its only value."""

    AS_IN_CONFIG = "as in Config"

    def __repr__(self) -> str:
        return "aioraft.DEFAULT_TIMEOUT"


DEFAULT_TIMEOUT: Final = DefaultTimeout.AS_IN_CONFIG
"""Stands for a timeout that was not given, since None means to wait for ever. For functions that pass a timeout on:

```python
async def put(item: str, *, timeout: aioraft.Timeout = aioraft.DEFAULT_TIMEOUT) -> int:
    return await node.propose(item.encode(), timeout=timeout)
```
"""

Timeout: TypeAlias = float | Literal[DefaultTimeout.AS_IN_CONFIG] | None
"""Seconds (0: fail unless it needs no waiting), None to wait for ever, or `DEFAULT_TIMEOUT` for what `Config` says."""


def check_timeout(timeout: float | None) -> float | None:
    """Return `timeout` in seconds, or None to wait for ever; raises `ConfigError` for anything else."""
    if timeout is None:
        return None
    seconds = _number(timeout)
    if math.isnan(seconds) or seconds < 0:
        raise ConfigError(
            f"timeout = {shown(timeout)}: it must be a number of seconds, 0 or more, or None to wait for ever"
        )
    return None if math.isinf(seconds) else seconds


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
