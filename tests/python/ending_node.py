"""A node in a process that ends in one way or another: `python ending_node.py WAY MEMBERS DATA_DIR`.

It is node 1 of MEMBERS, proposes without pause, and says `{"event": ...}` in JSON lines when it has begun to work and
when it begins to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import aioraft

CLOSE_TIMEOUT_S = 1.0
kept: list[object] = []  # what lives until the interpreter takes its modules apart


class Length(aioraft.StateMachine[int]):
    """Adds up the lengths of the commands."""

    def __init__(self) -> None:
        self.total = 0

    def apply(self, entry: aioraft.Entry) -> int:
        self.total += len(entry.data)
        return self.total


def say(event: str) -> None:
    sys.stdout.write(json.dumps({"event": event, "at": time.monotonic()}) + "\n")
    sys.stdout.flush()


async def propose(node: aioraft.Node[int]) -> None:
    """Propose until the node is closed."""
    try:
        while True:
            await node.propose(b"x" * 100, timeout=None)
    except aioraft.NodeClosedError as error:
        assert error.outcome is not None
        say(f"closed: {error.outcome.value}")


async def read(node: aioraft.Node[int]) -> None:
    async for _ in node.commits(after=0):
        pass


async def work(node: aioraft.Node[int]) -> list[asyncio.Task[None]]:
    """Keep the node busy; return when it is."""
    tasks = [asyncio.create_task(propose(node)) for _ in range(8)]
    tasks.append(asyncio.create_task(read(node)))
    if not node.status().peers:
        await node.propose(b"first")
    say("working")
    return tasks


# Ways to end with `async with`: at a signal


async def until_signalled(node: aioraft.Node[int]) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with node:
        tasks = await work(node)
        await asyncio.gather(*map(asyncio.shield, tasks))  # so that their calls are in flight when the node is closed


# Ways to end without closing the node


async def returning(node: aioraft.Node[int]) -> None:
    await node.start()
    kept.append(await work(node))
    say("ending")


async def cancelled(node: aioraft.Node[int]) -> None:
    await node.start()
    tasks = await work(node)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_soon(task.cancel)
    say("ending")
    await asyncio.gather(*tasks)


async def exiting(node: aioraft.Node[int]) -> None:
    await node.start()
    kept.append(await work(node))
    say("ending")
    sys.exit(3)


async def exiting_in_a_callback(node: aioraft.Node[int]) -> None:
    await node.start()
    tasks = await work(node)
    asyncio.get_running_loop().call_soon(sys.exit, 3)
    say("ending")
    await asyncio.gather(*tasks)


async def raising(node: aioraft.Node[int]) -> None:
    await node.start()
    kept.append(await work(node))
    say("ending")
    raise LookupError("the application's own fault")


def leaving_the_loop_open(node: aioraft.Node[int]) -> None:
    loop = asyncio.new_event_loop()
    kept.append(loop)
    loop.run_until_complete(node.start())
    kept.append(loop.run_until_complete(work(node)))
    say("ending")


WAYS: dict[str, Callable[[aioraft.Node[int]], Coroutine[Any, Any, None]]] = {
    way.__name__: way for way in (until_signalled, returning, cancelled, exiting, exiting_in_a_callback, raising)
}


def main(way: str, members: dict[int, str], data_dir: str) -> int:
    """Run the node; return the exit status."""
    config = aioraft.Config(
        election_timeout=0.3,
        heartbeat_interval=0.03,
        # Nobody waits for the close of a node that is dropped: one who did would be late.
        close_timeout=CLOSE_TIMEOUT_S if way == "until_signalled" else 60.0,
    )
    node = aioraft.Node(id=1, members=members, data_dir=data_dir, state_machine=Length(), config=config)
    if os.environ.get("KEEP_NODE"):
        kept.append(node)
    if way == "leaving_the_loop_open":
        leaving_the_loop_open(node)
        return 0
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(WAYS[way](node))
        return 0
    return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], {int(key): where for key, where in json.loads(sys.argv[2]).items()}, sys.argv[3]))
