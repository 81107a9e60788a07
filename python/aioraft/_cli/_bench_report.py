"""What `aioraft bench --json` prints. Keys may be added; those that are there keep their names and meaning."""

from __future__ import annotations

from typing import TypedDict

__all__ = ["BenchReport"]


class BenchReport(TypedDict):
    """All of it."""

    nodes: int
    in_flight: int
    value_bytes: int
    seconds: float
    proposals_per_s: float
    proposals: int
    """Answered within `seconds`, behind a warm-up."""
    latency_ms: dict[str, float]
    """`p50`, `p90`, `p99`, `p99.9` and `max`, to about one per cent."""
    histogram: list[tuple[float, int]]
    """Milliseconds, and how many took no longer than that and longer than those of the line before."""
    fdatasync_ms: dict[str, float]
    """An append of `value_bytes` and an fdatasync, before the cluster was started: `p50` and `p99`."""
