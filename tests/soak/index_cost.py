"""Measures what an entry of the log costs in memory: prints bytes. `python index_cost.py DATA_DIR`

The log keeps an index of its entries in memory, and this version never purges it: this much must grow.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys

import aioraft
from figures import Figures, figures_of

BATCHES = 100
BATCH = 500


class Nothing(aioraft.StateMachine[None]):
    """Has no state that could grow."""

    def apply(self, entry: aioraft.Entry) -> None: ...


async def grow(node: aioraft.Node[None]) -> Figures:
    for _ in range(BATCHES):
        await node.propose_many([bytes(100)] * BATCH)
    gc.collect()
    return figures_of(os.getpid(), node.status().last_index)


async def main(data_dir: str) -> None:
    config = aioraft.Config(entry_cache_bytes=64 * 1024)
    async with aioraft.Node(
        id=1,
        members={1: "127.0.0.1:7401"},
        listen="127.0.0.1:0",
        data_dir=data_dir,
        state_machine=Nothing(),
        config=config,
    ) as node:
        began = await grow(node)  # the first entries fill caches too
        for _ in range(3):
            ended = await grow(node)
    sys.stdout.write(f"{(ended.rss_bytes - began.rss_bytes) / (ended.entries - began.entries)}\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
