"""Latencies by the million in little memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

__all__ = ["Latencies"]

_PER_OCTAVE = 64  # so a bucket is about one per cent wide


class Latencies:
    """Counts in buckets that grow with the latency."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._max_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        bucket = math.floor(math.log2(max(seconds, 1e-9)) * _PER_OCTAVE)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self._max_s = max(self._max_s, seconds)

    def __len__(self) -> int:
        """How many there are."""
        return sum(self._counts.values())

    def percentiles_ms(self, *percents: float) -> dict[str, float]:
        """Milliseconds that so many per cent did not exceed, under names such as `p99`, and `max`."""
        found = {f"p{percent:g}": self._percentile_s(percent) * 1000 for percent in percents}
        return found | {"max": self._max_s * 1000}

    def _percentile_s(self, percent: float) -> float:
        left = len(self) * percent / 100
        for bucket, count in sorted(self._counts.items()):
            left -= count
            if left <= 0:
                return min(2 ** ((bucket + 1) / _PER_OCTAVE), self._max_s)
        return self._max_s

    def histogram_ms(self) -> list[tuple[float, int]]:
        """Upper bounds, each twice the one before, and the counts below."""
        return list(self._octaves())

    def _octaves(self) -> Iterator[tuple[float, int]]:
        octaves: dict[int, int] = {}
        for bucket, count in self._counts.items():
            octave = bucket // _PER_OCTAVE
            octaves[octave] = octaves.get(octave, 0) + count
        for octave in range(min(octaves, default=0), max(octaves, default=-1) + 1):
            yield 2 ** (octave + 1) * 1000.0, octaves.get(octave, 0)
