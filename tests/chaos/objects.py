"""The replicated objects of `chaos_node.py`: registers, counters and queues.

What is right for them is not said here but by the judge (`src/sim/objects.rs`), who has never seen this file.
"""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Iterator
from typing import Any, Literal

import aioraft
from counting_node import Counts, Sequence
from ledger import Ledger

NOTHING = -1
"""The answer of a register or a queue that is empty."""
KINDS: tuple[Literal["register", "counter", "queue"], ...] = ("register", "counter", "queue")


def kind(key: int) -> Literal["register", "counter", "queue"]:
    """Name the kind of the object with this key, as the judge does."""
    return KINDS[key % len(KINDS)]


def encode(name: str, key: int, action: list[Any]) -> bytes:
    """Return the command "do `action` to the object `key`", for the call of this name."""
    return json.dumps([name, key, *action]).encode()


class Objects(Counts):
    """All objects of one replica, and which calls have reached them."""

    def __init__(self) -> None:
        super().__init__()
        self.applied = Ledger()
        self.doubled: list[str] = []
        self._registers: dict[int, int] = {}
        self._counters: collections.defaultdict[int, int] = collections.defaultdict(int)
        self._queues: collections.defaultdict[int, collections.deque[int]] = collections.defaultdict(collections.deque)

    def apply(self, entry: aioraft.Entry) -> int:
        name, key, *action = json.loads(entry.data)
        if not self.applied.add(name):
            self.doubled.append(name)
        self.last_index = entry.index
        self._sequence.add(entry)
        return self._act(key, action)

    def _act(self, key: int, action: list[Any]) -> int:
        match action:
            case ["write", new]:
                before = self.read(key)
                self._registers[key] = new
                return before
            case ["cas", expected, new]:
                before = self.read(key)
                if before == expected:
                    self._registers[key] = new
                return before
            case ["add", by]:
                self._counters[key] += by
                return self._counters[key]
            case ["push", value]:
                self._queues[key].append(value)
                return len(self._queues[key])
            case ["pop"]:
                return self._queues[key].popleft() if self._queues[key] else NOTHING
            case _:
                raise ValueError(f"an object of this program does no such thing: {action}")

    def read(self, key: int) -> int:
        """Return a register's value, a counter's value, or the front of a queue."""
        match kind(key):
            case "register":
                return self._registers.get(key, NOTHING)
            case "counter":
                return self._counters[key]
            case "queue":
                return self._queues[key][0] if self._queues[key] else NOTHING

    def snapshot(self) -> Iterator[bytes]:
        place = [self.last_index, self._sequence.length, self._sequence.chain.hex()]
        # Made in front of the first `yield`: what is applied later is not in it.
        state, calls = json.dumps(self._state()).encode(), json.dumps([self.applied.dump(), self.doubled]).encode()
        yield json.dumps(place).encode()
        yield state
        yield calls

    def restore(self, data: Iterator[bytes]) -> None:
        (self.last_index, length, chain), state, (applied, self.doubled) = map(json.loads, data)
        registers, counters, queues = ({int(key): value for key, value in part.items()} for part in state)
        self._sequence = Sequence(length, bytes.fromhex(chain))
        self.applied = Ledger.load(applied)
        self._registers = registers
        self._counters.clear()
        self._counters.update(counters)
        self._queues.clear()
        self._queues.update((key, collections.deque(queue)) for key, queue in queues.items())

    def _state(self) -> list[dict[int, Any]]:
        # Objects that were read only are on this replica alone.
        queues = {key: list(queue) for key, queue in self._queues.items() if queue}
        counters = {key: value for key, value in self._counters.items() if value}
        return [self._registers, counters, queues]

    def digest(self) -> str:
        """Name the state, and the sequence of entries that led to it."""
        state = json.dumps(self._state(), sort_keys=True).encode()
        return f"{hashlib.blake2b(state, digest_size=8).hexdigest()} {self._sequence.digest()}"
