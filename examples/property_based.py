"""Hypothesis looks for commands that break a state machine, and leaves out what is not needed for that.

Run `pytest examples/property_based.py`.
"""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import aioraft
from aioraft.testing import Simulation


class Stock(aioraft.StateMachine[int]):
    def __init__(self) -> None:
        self.items: dict[str, int] = {}

    def apply(self, entry: aioraft.Entry) -> int:
        sku: str
        delta: int
        sku, delta = json.loads(entry.data)
        left = self.items.get(sku, 0) + delta
        if left < 0:
            raise ValueError(f"only {self.items.get(sku, 0)} of {sku} left")
        self.items[sku] = left
        return left

    def snapshot(self) -> bytes:
        return json.dumps(self.items, sort_keys=True).encode()

    def restore(self, data: Any) -> None:
        self.items = json.loads(data)


# Any text is a name, and any integer a change, until somebody has thought of a reason why not.
commands = st.lists(st.tuples(st.text(), st.integers()).map(lambda change: json.dumps(change).encode()), min_size=1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), commands=commands)
def test_stock(seed: int, commands: list[bytes]) -> None:
    Simulation(seed, 3, Stock, command=commands).run(seconds=60)
