"""One replica in a process of its own: proposes commands that name themselves, and counts how often each was applied.

It speaks JSON lines with `processes.py`, which starts it. On standard input come questions, `{"ask": 7, "do": ...}`;
on standard output go their answers, `{"ask": 7, "answer": ...}` or `"error"`, and what happens meanwhile, `{"event": ...}`.
It ends when its input does.
"""

from __future__ import annotations

import asyncio
import collections
import ctypes
import dataclasses
import hashlib
import json
import logging
import random
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import aioraft

ACKNOWLEDGED = "acknowledged"
NOT_COMMITTED = aioraft.Outcome.NOT_COMMITTED.value
UNKNOWN = aioraft.Outcome.UNKNOWN.value
WITHOUT_RESULT = aioraft.Outcome.APPLIED_WITHOUT_RESULT.value
PADDING_BYTES = (0, 10, 100, 1000, 8000)


class Counts(aioraft.StateMachine[int]):
    """Counts how often each command was applied; the result is that count, so 1 unless something is wrong."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.last_index = 0
        self.seconds_per_entry = 0.0
        self._sequence = Sequence()

    def apply(self, entry: aioraft.Entry) -> int:
        if self.seconds_per_entry:
            time.sleep(self.seconds_per_entry)
        name: str = json.loads(entry.data)["name"]
        self.counts[name] += 1
        self.last_index = entry.index
        self._sequence.add(entry)
        return self.counts[name]

    def digest(self) -> str:
        """Name the state, and the sequence of entries that led to it."""
        state = json.dumps(sorted(self.counts.items())).encode()
        return f"{hashlib.blake2b(state, digest_size=8).hexdigest()} {self._sequence.digest()}"

    def sequence(self) -> str:
        return self._sequence.digest()


class Sequence:
    """Digests entries in their order, with everything that must be the same on all replicas."""

    def __init__(self, length: int = 0, chain: bytes = b"") -> None:
        """Go on behind so many entries, whose digest is `chain`."""
        self.length = length
        self.chain = chain

    def add(self, entry: aioraft.Entry) -> None:
        self.length += 1
        before = b"%s %d %d %d %d " % (self.chain, entry.index, entry.term, entry.timestamp_ns, len(entry.data))
        self.chain = hashlib.blake2b(before + entry.data, digest_size=8).digest()

    def digest(self) -> str:
        return f"{self.length} {self.chain.hex()}"


class Replica:
    """Does what it is asked."""

    padding_bytes: tuple[int, ...] = PADDING_BYTES

    def __init__(self, node: aioraft.Node[int], machine: Counts, incarnation: str, seed: str) -> None:
        self._node = node
        self._machine = machine
        self._incarnation = incarnation
        self._random = random.Random(seed)
        self._issued = 0
        self._fates: dict[str, str] = {}  # of this turn of the loop, not said yet
        self._load: list[asyncio.Task[None]] = []
        self._loading = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._skills: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {
            "ready": self._ready,
            "load": self._start_load,
            "stop": self._stop_load,
            "propose": self._propose_some,
            "report": self._report,
            "status": self._status_now,
            "commits": self._commits,
            "block": self._block,
            "slow": self._slow,
            "close": self._close,
        }

    async def serve(self, questions: asyncio.StreamReader) -> None:
        """Work until standard input ends."""
        self._spawn(self._watch_leadership())
        async for question in questions:
            self._spawn(self._answer(**json.loads(question)))
        self._loading = False
        for task in self._tasks | set(self._load):
            task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error  # the loop logs it, and whoever reads the log finds it

    async def _answer(self, ask: int, do: str, **arguments: Any) -> None:
        try:
            answer = {"answer": await self._skills[do](**arguments)}
        except aioraft.RaftError as error:
            answer = {"error": repr(error)}
        except Exception as error:
            say({"ask": ask, "error": repr(error)})  # so that nobody waits for an answer in vain
            raise
        self._say_fates()
        say({"ask": ask, **answer})

    async def _watch_leadership(self) -> None:
        try:
            async for newest in self._node.leadership():
                say({"event": "leadership", "term": newest.term, "leader": newest.leader})
        except aioraft.FatalError as error:
            say({"event": "stopped", "message": str(error)})

    async def _ready(self) -> None:
        await self._node.ready()

    # Proposing

    def _next_command(self) -> tuple[str, bytes]:
        name = f"{self._incarnation}.{self._issued}"
        self._issued += 1
        padding = "x" * self._random.choice(self.padding_bytes)
        return name, json.dumps({"name": name, "padding": padding}).encode()

    async def _propose(self) -> bool:
        """Propose the next command and note what became of it; False when this node takes no more."""
        name, command = self._next_command()
        try:
            count = await self._node.propose(command)
        except aioraft.RaftError as error:
            self._note(name, UNKNOWN if error.outcome is None else error.outcome.value)
            return not isinstance(error, (aioraft.NodeClosedError, aioraft.FatalError))
        self._note(name, ACKNOWLEDGED if count == 1 else f"applied {count} times")
        return True

    def _note(self, name: str, fate: str) -> None:
        if not self._fates:
            asyncio.get_running_loop().call_soon(self._say_fates)
        self._fates[name] = fate

    def _say_fates(self) -> None:
        if self._fates:
            fates, self._fates = self._fates, {}
            say({"event": "fates", "fates": fates})

    async def _start_load(self, in_flight: int) -> None:
        self._loading = True
        self._load = [asyncio.create_task(self._work()) for _ in range(in_flight)]

    async def _work(self) -> None:
        while self._loading and await self._propose():
            pass

    async def _stop_load(self) -> int:
        """Wait for what is in flight; return how many commands this process has proposed in all."""
        self._loading = False
        await asyncio.gather(*self._load)
        return self._issued

    async def _propose_some(self, count: int) -> list[int]:
        """Return each one's result."""
        commands = [self._next_command() for _ in range(count)]
        results = await self._node.propose_many([command for _, command in commands])
        for (name, _), result in zip(commands, results, strict=True):
            self._note(name, ACKNOWLEDGED if result == 1 else f"applied {result} times")
        return results

    # Looking

    async def _report(self) -> dict[str, Any]:
        await self._node.read_barrier()
        return {
            "digest": self._machine.digest(),
            "sequence": self._machine.sequence(),
            "counts": self._machine.counts,
            "last_index": self._machine.last_index,
            "status": self._status(),
        }

    async def _status_now(self) -> dict[str, Any]:
        return self._status()

    def _status(self) -> dict[str, Any]:
        return dataclasses.asdict(self._node.status())

    async def _commits(self, through: int) -> list[str]:
        """Read the log from its beginning, entry by entry and in batches; return each sequence's digest."""
        single, batched = Sequence(), Sequence()
        async for entry in self._node.commits(after=0):
            single.add(entry)
            if entry.index >= through:
                break
        async for batch in self._node.commits(after=0).batches():
            for entry in batch:
                batched.add(entry)
            if batch[-1].index >= through:
                break
        return [single.digest(), batched.digest()]

    # Misbehaving, and ending

    async def _block(self, seconds: float) -> list[dict[str, Any]]:
        """Hold the event loop; return the status before and after, the latter from the very callback that held it."""
        held: asyncio.Future[list[dict[str, Any]]] = asyncio.get_running_loop().create_future()

        def hold() -> None:
            before = self._status()
            say({"event": "blocking"})
            # PyDLL keeps the GIL, as a busy extension module would: nothing in Python runs meanwhile.
            ctypes.PyDLL(None).usleep(ctypes.c_uint(round(seconds * 1e6)))
            held.set_result([before, self._status()])

        asyncio.get_running_loop().call_soon(hold)
        return await held

    async def _slow(self, seconds_per_entry: float) -> None:
        """Take so long for each entry from now on."""
        self._machine.seconds_per_entry = seconds_per_entry

    async def _close(self) -> int:
        """Close the node under the load it has; return how many commands this process has proposed in all."""
        await self._node.aclose()
        return await self._stop_load()


def say(message: dict[str, Any]) -> None:
    """Write one line to the parent."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def main(
    kind: type[Replica],
    machine: Counts,
    *,
    number: int,
    members: dict[int, str],
    data_dir: str,
    incarnation: str,
    seed: str,
    listen: dict[str, str] | None = None,
    **settings: Any,
) -> None:
    """Run one replica; `listen` says where each node listens, if not where the others reach it."""
    questions = asyncio.StreamReader(limit=2**20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
    async with aioraft.Node(
        id=number,
        members=members,
        data_dir=data_dir,
        state_machine=machine,
        listen=None if listen is None else listen[str(number)],
        config=aioraft.Config(**settings),
    ) as node:
        await kind(node, machine, incarnation, seed).serve(questions)


def run(kind: type[Replica], machine: Counts) -> None:
    """Run one replica of this kind, as the command line says."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    given = json.loads(sys.argv[1])
    given["members"] = {int(key): address for key, address in given["members"].items()}
    asyncio.run(main(kind, machine, **given))


if __name__ == "__main__":
    run(Replica, Counts())
