"""What a process holds, and whether that grows."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import statistics
import time

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TOLERANCE_BYTES = 2 * 1024 * 1024
"""What the second half of a run may add: the allocator's own ups and downs."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """A process at one moment."""

    at_s: float
    rss_bytes: int
    threads: int
    sockets: int
    files: int
    entries: int = 0
    """That its node has applied."""
    log_entries: int = 0
    """That are in its node's log."""
    log_bytes: int = 0
    """Of the log's files."""

    def __str__(self) -> str:
        return (
            f"{self.rss_bytes / 2**20:6.1f} MiB {self.threads:3} threads {self.sockets:3} sockets {self.files:3} files"
        )


def figures_of(pid: int) -> Figures:
    """Look at a process."""
    process = pathlib.Path(f"/proc/{pid}")
    resident_pages = int((process / "statm").read_text().split()[1])
    descriptors: list[str] = []
    for link in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has just been closed
            descriptors.append(os.readlink(link))
    sockets = sum(target.startswith("socket:") for target in descriptors)
    threads = len(list((process / "task").iterdir()))
    return Figures(time.monotonic(), resident_pages * PAGE_BYTES, threads, sockets, len(descriptors) - sockets)


def check_memory(samples: list[Figures]) -> tuple[str, bool]:
    """Say how memory grew over the second half, and whether that is nothing."""
    half = samples[len(samples) // 2 :]
    began, ended = half[0], half[-1]
    seconds, entries = ended.at_s - began.at_s, ended.entries - began.entries
    grown = statistics.linear_regression([one.at_s for one in half], [one.rss_bytes for one in half]).slope * seconds
    sentence = (
        f"memory over the last {seconds:.0f} s and {entries:,} entries: {grown / 2**20:+.2f} MiB by a straight line "
        f"through {len(half)} samples, allowed {TOLERANCE_BYTES / 2**20:.2f} MiB"
    )
    return sentence, grown <= TOLERANCE_BYTES
