"""One replica of the demo: proposes the lines it is given and counts the words of all lines that anyone proposed.

It speaks JSON lines with `demo.py`, which starts three of it. On standard input:

    {"lines": [[number, text, again], ...]}     propose these; `again`: one that died may have proposed it too
    {"finish": "FILE" or null}                  wait for everything committed, write the state to FILE, report it

and on standard output `{"ready": true}` once, `{"report": ...}` several times a second, `{"finished": ...}`.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import hashlib
import json
import logging
import pathlib
import sys
import time
from typing import Any

import aioraft

IN_FLIGHT = 256
REPORT_INTERVAL_S = 0.02


class Tally(aioraft.StateMachine[int]):
    """Counts words. A command is a JSON list [line number, text, again]; its result is the term it was committed in.

    aioraft applies what a process proposes exactly once, as long as that process lives. When it is killed, no one knows
    which of its unanswered lines are in the log; whoever proposes them again says so, and a line that was proposed
    `again` counts once, whichever copy comes first. Lines not marked so are *not* filtered here: if aioraft applied
    one twice, the count would be wrong.
    """

    def __init__(self) -> None:
        self.lines = 0
        self.words: collections.Counter[str] = collections.Counter()
        self._seen: dict[int, bool] = {}

    def apply(self, entry: aioraft.Entry) -> int:
        number, text, again = json.loads(entry.data)
        earlier_again = self._seen.get(number)
        if earlier_again is None or not (again or earlier_again):
            self.lines += 1
            self.words.update(text.split())
        self._seen[number] = bool(again or earlier_again)
        return entry.term


def describe(lines: int, words: collections.Counter[str]) -> str:
    """Write a state as text, the same for equal states."""
    return json.dumps({"lines": lines, "words": dict(sorted(words.items()))}, indent=0)


def digest(state: str) -> str:
    """Name a state in 16 hexadecimal digits."""
    return hashlib.blake2b(state.encode(), digest_size=8).hexdigest()


class Replica:
    """Carries lines from standard input to the node, and what became of them to standard output."""

    def __init__(self, node: aioraft.Node[int], tally: Tally) -> None:
        self._node = node
        self._tally = tally
        self._waiting: asyncio.Queue[list[Any]] = asyncio.Queue()
        self._done: list[int] = []
        # And when the first of these lines was applied in it, on the clock that all processes share.
        self._newest_term = (0, 0.0)

    async def serve(self, messages: asyncio.StreamReader) -> None:
        """Work until standard input ends."""
        async with asyncio.TaskGroup() as tasks:
            working = [tasks.create_task(self._propose()) for _ in range(IN_FLIGHT)]
            working.append(tasks.create_task(self._report()))
            async for message in messages:
                order = json.loads(message)
                for line in order.get("lines", ()):
                    self._waiting.put_nowait(line)
                if "finish" in order:
                    await self._finish(order["finish"])
            for task in working:
                task.cancel()

    async def _propose(self) -> None:
        while True:
            line = await self._waiting.get()
            term = await self._node.propose(json.dumps(line).encode())
            if term > self._newest_term[0]:
                self._newest_term = (term, time.monotonic())
            self._done.append(line[0])

    async def _report(self) -> None:
        await self._node.ready()
        say({"ready": True})
        while True:
            done, self._done = self._done, []
            status = dataclasses.asdict(self._node.status())
            say({"report": {"done": done, "newest_term": self._newest_term, "status": status}})
            await asyncio.sleep(REPORT_INTERVAL_S)

    async def _finish(self, path: str | None) -> None:
        await self._node.read_barrier(timeout=None)
        state = describe(self._tally.lines, self._tally.words)
        if path is not None:
            await asyncio.to_thread(pathlib.Path(path).write_text, state)
        status = dataclasses.asdict(self._node.status())
        say({"finished": {"digest": digest(state), "status": status}})


def say(message: dict[str, Any]) -> None:
    """Write one line to the parent."""
    print(json.dumps(message), flush=True)


async def main(number: int, members: dict[int, str], data_dir: str) -> None:
    """Run one replica."""
    lines = asyncio.StreamReader(limit=2**28)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    tally = Tally()
    # Waits for ever: while there is no leader the lines wait, and the parent decides when that has lasted too long.
    config = aioraft.Config(propose_timeout=None)
    async with aioraft.Node(id=number, members=members, data_dir=data_dir, state_machine=tally, config=config) as node:
        await Replica(node, tally).serve(lines)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    addresses = {int(key): address for key, address in json.loads(sys.argv[2]).items()}
    asyncio.run(main(int(sys.argv[1]), addresses, sys.argv[3]))
