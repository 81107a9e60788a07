"""How a node finds its place in a cluster by its name: one manifest for every pod.

What stands in its data directory comes first. Without one, the node asks the seeds: a cluster that answers gives it an id,
under which it joins. While none answers, the first `bootstrap_expect` seeds found one, which takes all of them, once; a
founder that has lost its disk finds the others formed, and joins like anybody else.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
from collections.abc import Sequence

from ._admin import AdminError
from ._core import AdminClient, Core, recorded
from ._errors import ConfigError, shown
from ._members import check_reachable, parse_address

__all__ = ["Place", "Seeds", "check_seeds"]

_log = logging.getLogger("aioraft.node")

_ASK_TIMEOUT = 5.0
"""Seconds that one seed may take to answer."""
_RESTS = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds between two rounds of questions; the last one from then on."""
_NAME_BYTES_MAX = 253


@dataclasses.dataclass(frozen=True)
class Place:
    """Which node of the cluster this one is."""

    id: int
    name: str
    members: dict[int, str]
    """Where to find the others at first, and itself."""
    identity: int
    """Of its data directory."""
    is_new: bool
    """The directory is to be made; or to be taken from a cluster that was never founded."""
    is_final: bool
    """A cluster has given it, or stands in the directory."""


class Seeds:
    """A node's name, and whom it asks for its place."""

    def __init__(self, name: str, seeds: list[str], expect: int, advertise: str, cluster: str) -> None:
        self.advertise = advertise
        self._name = name
        self._seeds = seeds
        self._cluster = cluster
        self._founders = dict(enumerate(seeds[:expect], start=1))
        self._said: set[str] = set()

    def founder(self, identity: int) -> Place | None:
        """Return this node's place among the founders, if it is one of them."""
        for number, address in self._founders.items():
            if _same(address, self.advertise):
                return Place(number, self._name, dict(self._founders), identity, is_new=True, is_final=False)
        return None

    async def recorded(self, data_dir: str | None) -> Place | None:
        """Return the place that stands in the data directory, if one does."""
        found = None if data_dir is None else await asyncio.to_thread(recorded, data_dir)
        if found is None:
            return None
        if found["cluster"] != self._cluster:
            raise ConfigError(
                f"data_dir = {shown(data_dir)}: it belongs to cluster {found['cluster']!r}, not to {self._cluster!r}: "
                "check cluster= and data_dir="
            )
        members = dict(self._founders)
        members.setdefault(found["id"], self.advertise)
        return Place(
            found["id"],
            self._name,
            members,
            int(found["identity"], 16),
            is_new=False,
            is_final=found["stage"] != "unformed",
        )

    async def join(self, identity: int) -> Place:
        """Ask the seeds, round after round, until a cluster gives a place to the data directory of that identity."""
        rests = itertools.chain(_RESTS, itertools.repeat(_RESTS[-1]))
        while (place := await self.ask(identity)) is None:
            await asyncio.sleep(next(rests))
        return place

    async def ask(self, identity: int) -> Place | None:
        """Ask each of the seeds once for a place for the data directory of that identity."""
        for asked in asyncio.as_completed([self._ask(seed, identity) for seed in self._others()]):
            if (place := await asked) is not None:
                return place
        return None

    async def leader_or_place(self, core: Core, place: Place) -> Place | None:
        """Wait until `core`, which runs in `place`, knows of a leader; or return another place, if a cluster gives it one."""
        if place.is_final:
            await _leader(core)
            return None
        following = asyncio.create_task(_leader(core))
        joining = asyncio.create_task(self.join(place.identity))
        try:
            while True:
                await asyncio.wait([following, joining], return_when=asyncio.FIRST_COMPLETED)
                if following.done():
                    await following
                    return None
                other = await joining
                if other.id != place.id:
                    return other
                # The cluster knows this directory: it is only a matter of time.
                await following
        finally:
            for task in (following, joining):
                task.cancel()
            await asyncio.gather(following, joining, return_exceptions=True)

    def _others(self) -> list[str]:
        return [seed for seed in self._seeds if not _same(seed, self.advertise)]

    async def _ask(self, seed: str, identity: int) -> Place | None:
        client = AdminClient(seed, cluster=self._cluster)
        try:
            number, members = await asyncio.to_thread(
                client.join, self._name, identity, self.advertise, {}, _ASK_TIMEOUT
            )
        except AdminError as error:
            self._say(seed, error)
            return None
        # Whoever had this address before is gone.
        others = {other: address for other, address in members.items() if not _same(address, self.advertise)}
        return Place(number, self._name, {**others, number: self.advertise}, identity, is_new=True, is_final=True)

    def _say(self, seed: str, error: AdminError) -> None:
        # Not reached, or not formed yet, is how it begins.
        is_early = error.kind in ("unreachable", "forming")
        text = f"{self._name!r} got no place in the cluster from {seed}: {error}"
        if text not in self._said:
            self._said.add(text)
            _log.log(logging.DEBUG if is_early else logging.WARNING, text)


async def _leader(core: Core) -> None:
    """Wait until `core` knows of a leader: it belongs to a cluster then."""
    while (known := core.leadership)[2] is None:
        await core.wait_leadership(known[0])


def check_seeds(name: object, seeds: object, expect: object, *, advertise: str | None, cluster: str) -> Seeds:
    """Return how a node of that name finds its place. Raises `ConfigError`."""
    if not isinstance(name, str) or not 1 <= len(name.encode()) <= _NAME_BYTES_MAX:
        raise ConfigError(f"name = {shown(name)}: it must be a text of 1 to {_NAME_BYTES_MAX} bytes, the node's own")
    if isinstance(seeds, str) or not isinstance(seeds, Sequence) or not seeds:
        raise ConfigError(
            f'seeds = {shown(seeds)}: it must list the addresses of some nodes, such as ["app-0.app:7400", '
            '"app-1.app:7400", "app-2.app:7400"], the same on every node'
        )
    for at, seed in enumerate(seeds):
        check_reachable(f"seeds[{at}]", seed)
        if any(_same(seed, other) for other in seeds[:at]):
            raise ConfigError(f"seeds[{at}] = {shown(seed)} is listed twice: each node has an address of its own")
    if not isinstance(expect, int) or isinstance(expect, bool) or not 1 <= expect <= len(seeds):
        raise ConfigError(
            f"bootstrap_expect = {shown(expect)}: it must say how many of the seeds found the cluster, from 1 to "
            f"{len(seeds)}, the same on every node; 3 is usual"
        )
    return Seeds(name, list(seeds), expect, _own_address(name, seeds, advertise), cluster)


def _own_address(name: str, seeds: Sequence[str], advertise: str | None) -> str:
    if advertise is not None:
        return advertise
    for seed in seeds:
        host, _ = parse_address("a seed", seed)
        if name in (host, host.split(".")[0]):
            return seed
    raise ConfigError(
        f"advertise= is missing, and none of the seeds is {name!r}: give the address at which the others reach this node"
    )


def _same(one: str, other: str) -> bool:
    return one.rstrip(".").lower() == other.rstrip(".").lower()
