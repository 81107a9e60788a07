"""The rest of the programs in docs/logging.md, which show only how they configure logging: one node, and its end."""

from __future__ import annotations

import asyncio

import aioraft
from machines import Adder


async def main() -> None:
    node = aioraft.Node(id=1, members={1: "127.0.0.1:7401"}, data_dir=None, state_machine=Adder(), listen="127.0.0.1:0")
    async with node:
        await node.propose(b"1")
        late = asyncio.ensure_future(node.propose(b"fail"))
        await asyncio.sleep(0)
        late.cancel()  # so that nobody receives what apply raises
        await node.propose(b"1")


asyncio.run(main())
