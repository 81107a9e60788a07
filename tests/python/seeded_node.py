"""A node that finds its place by its name, as a process: it says when it has one, proposes, and stays until it is killed."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import aioraft
from aioraft.testing import TEST_CONFIG
from machines import Adder


async def main(settings: dict[str, Any]) -> None:
    async with aioraft.Node(**settings, state_machine=Adder(), config=TEST_CONFIG) as node:
        say({"id": node.id})
        say({"total": await node.propose(b"1")})
        await node.wait_stopped()


def say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
