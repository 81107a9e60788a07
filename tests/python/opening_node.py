"""Start a node in a process of its own, once, and say what came of it: one line of JSON."""

from __future__ import annotations

import asyncio
import json
import sys

import aioraft
from machines import Adder


async def main(data_dir: str) -> None:
    """Start a node that is alone, and propose once."""
    node = aioraft.Node(
        id=1, members={1: "127.0.0.1:7401"}, data_dir=data_dir, state_machine=Adder(), listen="127.0.0.1:0"
    )
    try:
        async with node:
            said: dict[str, object] = {"total": await node.propose(b"1", timeout=10)}
    except aioraft.RaftError as error:
        said = {"error": type(error).__name__, "message": str(error)}
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
