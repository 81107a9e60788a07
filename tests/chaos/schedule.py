"""What goes wrong, and when: drawn from a seed before anything starts."""

from __future__ import annotations

import dataclasses
import itertools
import random

LEADER = 0
"""In the place of a node: whoever leads at that moment."""
KINDS = (
    "killed",
    "closed",
    "frozen",
    "partitioned",
    "cut one way",
    "stalled",
    "delayed",
    "broken",
    "slow disk",
    "failed disk",
)
KINDS_AT_ONCE = 4
CHANGES = ("replaced", "removed", "demoted")
"""What happens to members, beside the faults: another node takes a seat, at once or after a while; or a vote goes, for a
while."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault. Which of the fields count, its kind decides. Nodes are named by their seats, which others may take."""

    at_s: float
    kind: str
    seconds: float
    """How long it lasts, or how long a process stays down."""
    nodes: tuple[int, ...] = ()
    ways: tuple[tuple[int, int], ...] = ()
    delay_s: float = 0.0
    """Of what goes these ways, or of each fsync."""
    breaks: bool = False
    """Connections that go these ways do not live to see its end."""

    def __str__(self) -> str:
        nodes = ", ".join("the leader" if node == LEADER else f"node {node}" for node in self.nodes)
        ways = " ".join(f"{one}>{other}" for one, other in self.ways)
        delay = f", {self.delay_s * 1000:.0f} ms" if self.delay_s else ""
        end = ", then broken" if self.breaks else ""
        return f"{self.at_s:6.1f} s  {self.kind}: {nodes or ways} for {self.seconds:.1f} s{delay}{end}"


def draw(seed: str, seconds: float, nodes: int, election_timeout_s: float) -> list[Fault]:
    """Return the faults of a run: some kinds at a time, few or many of them, with a calm between."""
    chance = random.Random(f"faults {seed}")
    drawing = _Drawing(chance, tuple(range(1, nodes + 1)), election_timeout_s)
    faults: list[Fault] = []
    deck: list[str] = []
    at_s = 1.0
    while at_s < seconds:
        end_s = at_s + chance.uniform(4.0, 10.0)
        every_s = chance.choice((0.4, 0.8, 1.5))
        if len(deck) < KINDS_AT_ONCE:  # each kind once, before any comes again
            deck += chance.sample(KINDS, len(KINDS))
        kinds, deck = deck[:KINDS_AT_ONCE], deck[KINDS_AT_ONCE:]
        for count, kind in enumerate(itertools.cycle(kinds)):
            if at_s >= seconds or (at_s >= end_s and count >= KINDS_AT_ONCE):
                break
            fault = drawing.fault(at_s, kind)
            faults.append(dataclasses.replace(fault, seconds=min(fault.seconds, seconds - at_s)))
            at_s += chance.uniform(0.0, 2 * every_s)
        at_s = max(at_s, end_s) + chance.uniform(1.0, 2.0)
    return faults


def draw_changes(seed: str, seconds: float, nodes: int) -> list[Fault]:
    """Return what happens to the members of a run; whatever else goes wrong does so at the same times without it."""
    chance = random.Random(f"members {seed}")
    changes: list[Fault] = []
    deck: list[str] = []
    at_s = chance.uniform(1.0, 3.0)
    while at_s < seconds:
        deck = deck or chance.sample(CHANGES, len(CHANGES))
        seat = LEADER if chance.random() < 0.3 else chance.randrange(1, nodes + 1)
        lasts_s = min(chance.uniform(0.0, 3.0), seconds - at_s)
        changes.append(Fault(at_s, deck.pop(), lasts_s, (seat,)))
        at_s += chance.uniform(2.0, 8.0)
    return changes


class _Drawing:
    def __init__(self, chance: random.Random, nodes: tuple[int, ...], election_timeout_s: float) -> None:
        self._random = chance
        self._nodes = nodes
        self._ways = tuple(itertools.permutations(nodes, 2))
        self._election_timeout_s = election_timeout_s

    def fault(self, at_s: float, kind: str) -> Fault:
        chance = self._random
        match kind:
            case "killed":
                return Fault(at_s, kind, chance.uniform(0.0, 3.0), self._victims())
            case "closed":
                return Fault(at_s, kind, chance.uniform(0.0, 2.0), self._victims()[:1])
            case "frozen":
                # A follower waits for up to twice the election timeout.
                return Fault(at_s, kind, chance.uniform(2.0, 6.0) * self._election_timeout_s, self._victims())
            case "partitioned":
                return Fault(at_s, kind, chance.uniform(1.0, 6.0), ways=self._parted(), breaks=chance.random() < 0.3)
            case "cut one way":
                return Fault(at_s, kind, chance.uniform(1.0, 6.0), ways=self._one_way(), breaks=chance.random() < 0.3)
            case "stalled":
                return Fault(at_s, kind, chance.uniform(0.1, 1.0), ways=self._some_ways())
            case "delayed":
                delay_s = chance.uniform(0.01, 0.4)
                return Fault(at_s, kind, chance.uniform(1.0, 5.0), ways=self._some_ways(), delay_s=delay_s)
            case "broken":
                return Fault(at_s, kind, 0.0, ways=self._some_ways(), breaks=True)
            case "slow disk":
                delay_s = chance.choice((0.02, 0.1, 0.5))
                return Fault(at_s, kind, chance.uniform(1.0, 5.0), self._victims(), delay_s=delay_s)
            case _:
                return Fault(at_s, kind, chance.uniform(1.0, 3.0), self._victims()[:1])

    def _victims(self) -> tuple[int, ...]:
        """One node, mostly, often the leader; or several, or all."""
        count = self._random.choice((1, 1, 1, 1, len(self._nodes) // 2, len(self._nodes)))
        if count == 1 and self._random.random() < 0.5:
            return (LEADER,)
        return tuple(self._random.sample(self._nodes, count))

    def _parted(self) -> tuple[tuple[int, int], ...]:
        """Groups that do not hear each other; or two that a single node hears both of; or two nodes, or all, apart."""
        nodes = self._random.sample(self._nodes, len(self._nodes))
        at = self._random.randrange(1, len(nodes))
        match self._random.choice(("groups", "groups", "bridge", "pair", "all")):
            case "groups":
                groups = [nodes[:at], nodes[at:]]
            case "bridge":
                half = len(nodes) // 2
                groups = [nodes[:half], nodes[half + 1 :]]
            case "pair":
                groups = [nodes[:1], nodes[1:2]]
            case _:
                groups = [[node] for node in nodes]
        parted = [
            (one, other) for group in groups for one in group for rest in groups if rest is not group for other in rest
        ]
        return tuple(sorted(parted))

    def _one_way(self) -> tuple[tuple[int, int], ...]:
        """Nobody hears a node; or it hears nobody; or one node does not hear another; or any ways."""
        node = self._random.choice(self._nodes)
        match self._random.choice(("mute", "deaf", "single", "any")):
            case "mute":
                return tuple(way for way in self._ways if way[0] == node)
            case "deaf":
                return tuple(way for way in self._ways if way[1] == node)
            case "single":
                return (self._random.choice(self._ways),)
            case _:
                return self._any_ways()

    def _some_ways(self) -> tuple[tuple[int, int], ...]:
        """To and from a node, or any ways, or all."""
        node = self._random.choice(self._nodes)
        around = tuple(way for way in self._ways if node in way)
        return self._random.choice((around, self._any_ways(), self._ways))

    def _any_ways(self) -> tuple[tuple[int, int], ...]:
        return tuple(sorted(self._random.sample(self._ways, self._random.randrange(1, len(self._ways)))))
