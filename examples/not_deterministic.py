"""Three state machines that would let replicas drift apart, and tests that find it.

Run `pytest examples/not_deterministic.py`: each of the tests fails, as it should. What to do instead stands beside each
mistake.
"""

import json
import random
import time

import aioraft
from aioraft.testing.plugin import RaftSimulation


class Raffle(aioraft.StateMachine[str]):
    """Iterates over a set: its order differs from process to process. Use `min(self.names)`, or a dict."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def apply(self, entry: aioraft.Entry) -> str:
        self.names.add(json.loads(entry.data))
        return next(iter(self.names))


class Leases(aioraft.StateMachine[bool]):
    """Reads the local clock, which no two machines have in common. Use `entry.timestamp`."""

    def __init__(self) -> None:
        self.until = 0.0

    def apply(self, entry: aioraft.Entry) -> bool:
        granted = time.time() >= self.until
        if granted:
            self.until = time.time() + 60
        return granted


class Tokens(aioraft.StateMachine[int]):
    """Draws a random number on each replica anew. Draw it before `propose`, and put it into the command."""

    def apply(self, entry: aioraft.Entry) -> int:
        return random.getrandbits(64)


def name(rng: random.Random) -> bytes:
    return json.dumps(rng.choice(["Ada", "Barbara", "Grace", "Radia", "Sophie"])).encode()


def test_raffle(raft_simulation: RaftSimulation) -> None:
    raft_simulation(3, Raffle, command=name).run(seconds=60)


def test_leases(raft_simulation: RaftSimulation) -> None:
    raft_simulation(3, Leases, command=name).run(seconds=60)


def test_tokens(raft_simulation: RaftSimulation) -> None:
    raft_simulation(3, Tokens, command=name).run(seconds=60)
