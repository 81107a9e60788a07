"""One replica of `chaos.py` and its clients, who write down what they ask for and what they are told.

It speaks the language of `counting_node.py`.
"""

from __future__ import annotations

import asyncio
import pathlib
import sys
import time
from typing import Any, Literal, TypeAlias

TESTS = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "python"), str(TESTS / "soak")]

import aioraft  # noqa: E402
from counting_node import Replica, run  # noqa: E402
from history import Recorder  # noqa: E402
from objects import NOTHING, Objects, encode, kind  # noqa: E402

Action: TypeAlias = list[Any]
"""What to do, and with which numbers: as a history has it."""
GENERATION_NS = 2_000_000_000
"""The objects change so often: histories stay short enough to be judged."""
OBJECTS = 12
"""That are in use at the same time."""
PAUSE_S = 0.01
"""Between two calls of one client, on average."""
PROBE_S = 20.0


class Served(Replica):
    """Its clients call without pause, whatever happens to their node."""

    def __init__(self, node: aioraft.Node[int], machine: Objects, incarnation: str, seed: str) -> None:
        super().__init__(node, machine, incarnation, seed)
        self._objects = machine
        self._breaks = ""
        self._seen: dict[int, int] = {}
        self._skills |= {"probe": self._probe, "change": self._change_members, "replace": self._replace}

    async def _start_load(self, in_flight: int, history: str = "", breaks: str = "") -> None:
        """Begin; `breaks` names what the clients are to do wrong, and get caught at."""
        self._history = Recorder(pathlib.Path(history))
        self._breaks = breaks
        await super()._start_load(in_flight)
        for client in self._load:
            client.add_done_callback(self._ended)

    async def _work(self) -> None:
        while self._loading and await self._call_somehow():
            await asyncio.sleep(self._random.uniform(0, 2 * PAUSE_S))

    async def _call_somehow(self) -> bool:
        """Do something to an object, and wait for a while; False when this node takes no more calls."""
        key = time.monotonic_ns() // GENERATION_NS * OBJECTS + self._random.randrange(OBJECTS)
        patience_s = self._random.uniform(0.001, self._random.choice((0.02, 1.0, 1.0, 4.0, 4.0)))
        leaves_after_s = patience_s / 2 if self._random.random() < 0.05 else None
        try:
            await self._call(key, self._choose(key), patience_s, leaves_after_s)
        except (aioraft.NodeClosedError, aioraft.FatalError):
            return False
        except (aioraft.RaftError, TimeoutError):
            pass
        return True

    def _choose(self, key: int) -> Action:
        if self._random.random() < 1 / 3:
            return ["read"]
        # Values are told apart by the call that wrote them.
        node, start = map(int, self._incarnation.split("."))
        value = (start * 1000 + node) * 10_000_000 + self._history.calls
        match kind(key), self._random.randrange(3):
            case "register", 0:
                return ["cas", self._seen.get(key, NOTHING), value]
            case "register", _:
                return ["write", value]
            case "counter", _:
                return ["add", value % 7 + 1]
            case "queue", 0:
                return ["pop"]
            case _:
                return ["push", value]

    async def _call(self, key: int, action: Action, patience_s: float, leaves_after_s: float | None = None) -> None:
        """Make one call, and write it down; raises what it raises."""
        call = self._history.begin(key, action)
        try:
            async with asyncio.timeout(leaves_after_s):
                if action == ["read"]:
                    answer = await self._read(key, patience_s)
                else:
                    command = encode(f"{self._incarnation}.{call}", key, action)
                    answer = await self._change(command, patience_s)
        except aioraft.RaftError as error:
            self._history.end(call, how(error))
            raise
        except TimeoutError:
            self._history.end(call, "unknown")
            raise
        self._history.answer(call, answer)
        self._seen = {key: answer if action[0] in ("read", "cas") else action[-1]}

    async def _read(self, key: int, patience_s: float) -> int:
        if self._breaks != "stale-reads":
            await self._node.read_barrier(timeout=patience_s)
        return self._objects.read(key)

    async def _change(self, command: bytes, patience_s: float) -> int:
        try:
            return await self._node.propose(command, timeout=patience_s)
        except aioraft.OutcomeUnknownError:
            if self._breaks != "retries":
                raise
            return await self._node.propose(command, timeout=PROBE_S)

    # Members

    async def _change_members(self, what: str, patience_s: float, **arguments: Any) -> None:
        change: type[Any] = getattr(aioraft, what)
        await self._node.change_members([change(**arguments)], timeout=patience_s)

    async def _replace(self, old: int, new: int, address: str, patience_s: float) -> None:
        await self._node.replace(old, new, address, timeout=patience_s)

    # At the end

    async def _probe(self) -> None:
        """Change and read every kind of object, which must succeed."""
        newest = time.monotonic_ns() // GENERATION_NS * OBJECTS
        actions: list[Action] = [["write", 1], ["add", 1], ["pop"]]
        for key, action in enumerate(actions, start=newest):
            await self._call(key, action, PROBE_S)
            await self._call(key, ["read"], PROBE_S)

    async def _report(self) -> dict[str, Any]:
        await self._node.read_barrier()
        return {
            "digest": self._objects.digest(),
            "applied": self._objects.applied.dump(),
            "doubled": self._objects.doubled,
            "index": self._objects.last_index,
            "votes": {str(number): member.votes for number, member in self._node.members().items()},
        }


def how(error: aioraft.RaftError) -> Literal["applied", "refused", "unknown"]:
    """Name the end of a call that raised this; a read that failed has changed nothing."""
    match error.outcome:
        case None | aioraft.Outcome.NOT_COMMITTED:
            return "refused"
        case aioraft.Outcome.UNKNOWN:
            return "unknown"
        case _:
            return "applied"


if __name__ == "__main__":
    run(Served, Objects())
