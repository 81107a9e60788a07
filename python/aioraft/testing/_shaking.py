"""Gives the sets in a state other orders of iteration, as they have on a replica with another past.

What a set iterates over first depends on the size of its table, which is that of the most it has ever held, and for
elements that fall on the same place on who came first. Both differ after a restore from a snapshot. In one process all
replicas would have them in common, and strings their hashes too.
"""

from __future__ import annotations

import random
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

__all__ = ["shake"]

OBJECTS: Final = 10_000
"""Looked at in one state, at most."""

FILLERS: Final = (0, 0, 5, 20, 100, 400)
OPAQUE: Final[tuple[type, ...]] = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    random.Random,
)
LEAVES: Final = frozenset({bool, bytes, complex, float, int, str, type(None), frozenset})


def shake(state: object, rng: random.Random) -> int:
    """Reorder every set that the state holds; returns how many objects were looked at."""
    looked_at = [0]
    for one in list(_sets(state, looked_at)):
        elements = list(one)
        rng.shuffle(elements)
        # Behind this line nothing of the application's is called that could fail: the hashes are known.
        shuffled = dict.fromkeys(elements)
        fillers = [object() for _ in range(rng.choice(FILLERS))]
        one.clear()
        one.update(fillers)
        one.update(shuffled)
        for filler in fillers:  # one by one: that leaves the table as large as it is
            one.discard(filler)
    return looked_at[0]


def _sets(state: object, looked_at: list[int]) -> Iterator[set[Any]]:
    waiting: deque[object] = deque([state])
    seen: set[int] = set()
    while waiting and looked_at[0] < OBJECTS:
        one = waiting.popleft()
        kind = type(one)
        looked_at[0] += 1
        if kind in LEAVES or id(one) in seen or isinstance(one, OPAQUE):
            continue
        seen.add(id(one))
        if kind is set:
            yield one  # type: ignore[misc]
        elif isinstance(one, dict):
            waiting.extend(cast("Mapping[Any, Any]", one).values())
        elif isinstance(one, list | tuple | deque):
            waiting.extend(cast("list[Any]", one))
        elif kind.__module__.partition(".")[0] not in sys.stdlib_module_names:
            waiting.extend(getattr(one, "__dict__", {}).values())
            for base in kind.__mro__:
                slots = base.__dict__.get("__slots__", ())
                for slot in (slots,) if isinstance(slots, str) else slots:
                    if not slot.startswith("__") and hasattr(one, slot):
                        waiting.append(getattr(one, slot))
