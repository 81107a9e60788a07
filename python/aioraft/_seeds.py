"""How a node finds its place in a cluster by its name: one manifest for every pod.

What stands in its data directory comes first. Without that, the node asks the seeds: a cluster that answers gives it an
id, under which it joins. While none answers, the first `bootstrap_expect` seeds found one, which takes all of them,
once; a founder that has lost its disk finds the others formed, and joins like anybody else.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import functools
import itertools
import logging
import secrets
from collections.abc import Sequence
from typing import Any, cast

from ._admin import AdminError, Kind
from ._core import AdminClient, Core, recorded
from ._errors import ConfigError, shown
from ._members import canonical, check_reachable, is_utf8, parse_address

__all__ = ["Place", "Seeds", "check_seeds"]

_log = logging.getLogger("aioraft.node")

_ASK_TIMEOUT = 5.0
"""Seconds that one seed may take to answer."""
_RESTS = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds between two rounds of questions; the last one from then on."""
_SAY_EVERY = 10.0
"""Seconds between two warnings that there is no place yet."""
_FOUNDED: frozenset[Kind] = frozenset({"refused", "timed-out", "unknown", "not-leader"})
"""Answers that only a node of a formed cluster gives."""
_LEVELS: dict[Kind, int] = {"turned-away": logging.WARNING, "unsupported": logging.WARNING, "refused": logging.INFO}
"""How loud an answer is at first. Another cluster's node does not change its mind; out of reach, or not formed yet, is
how it begins; and a node that has just died still has its name for a moment."""
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
        self.name = name
        self.advertise = advertise
        self._cluster = cluster
        self._founders = dict(enumerate(seeds[:expect], start=1))
        self._others = [seed for seed in seeds if not _same(seed, advertise)]
        self._is_founded = False
        """Some node belongs to a formed cluster, though that gave no place yet."""
        self._answers: dict[str, str] = {}
        self._said: set[tuple[str, str]] = set()

    async def find(self, data_dir: str | None) -> Place:
        """Return this node's place: what its directory says, what a cluster gives, or one among the founders."""
        found = None if data_dir is None else await asyncio.to_thread(self._recorded, data_dir)
        if found is not None and found.is_final:
            return found
        # A directory that belongs to no cluster yet has promised nothing under its id; a cluster may know it already.
        identity = secrets.randbits(128) if found is None else found.identity
        place = await self._ask_all(identity)
        if place is None and not self._is_founded:
            place = self._founder(identity)
        if place is None:
            place = await self._join(identity)
        is_known = found is not None and found.id == place.id
        return dataclasses.replace(place, is_new=not is_known)

    async def leader_or_place(self, core: Core, place: Place) -> Place | None:
        """Wait until `core`, which runs in `place`, knows of a leader; or return the place that a cluster gives."""
        if place.is_final:
            await _leader(core)
            return None
        following = asyncio.create_task(_leader(core))
        joining = asyncio.create_task(self._join(place.identity))
        try:
            await asyncio.wait([following, joining], return_when=asyncio.FIRST_COMPLETED)
            if not following.done() and (other := await joining).id != place.id:
                return other
            # With the same id the cluster knows this directory: it is only a matter of time.
            await following
            return None
        finally:
            await _cancel([following, joining])

    def _founder(self, identity: int) -> Place | None:
        """Return this node's place among the founders, if it is one of them."""
        for number, address in self._founders.items():
            if _same(address, self.advertise):
                if len(self._founders) == 1:
                    _log.info("%s", f"{self.name!r} is to found cluster {self._cluster!r} alone: bootstrap_expect = 1")
                return Place(number, self.name, dict(self._founders), identity, is_new=True, is_final=False)
        return None

    def _recorded(self, data_dir: str) -> Place | None:
        """Return the place that stands in the data directory, if one does."""
        found = recorded(data_dir)
        if found is None:
            return None
        if found["cluster"] != self._cluster:
            raise ConfigError(
                f"data_dir = {shown(data_dir)}: it belongs to cluster {found['cluster']!r}, not to {self._cluster!r}: "
                "check cluster= and data_dir="
            )
        number = found["id"]
        members = self._founders if number in self._founders else self._beside(number, self._founders)
        is_final = found["stage"] != "unformed"
        return Place(number, self.name, dict(members), int(found["identity"], 16), is_new=False, is_final=is_final)

    async def _join(self, identity: int) -> Place:
        """Ask the seeds, round after round, until a cluster gives a place to the data directory of that identity."""
        rests = itertools.chain(_RESTS, itertools.repeat(_RESTS[-1]))
        clock = asyncio.get_running_loop().time
        say_at = clock() + _SAY_EVERY
        while (place := await self._ask_all(identity)) is None:
            if clock() >= say_at:
                say_at = clock() + _SAY_EVERY
                answers = "; ".join(self._answers.values()) or "there is nobody to ask: the seeds name only this node"
                _log.warning(
                    "%s", f"{self.name!r} has no place in cluster {self._cluster!r} yet, still asking: {answers}"
                )
            await asyncio.sleep(next(rests))
        return place

    async def _ask_all(self, identity: int) -> Place | None:
        """Ask each of the seeds once for a place for the data directory of that identity."""
        if not self._others:
            return None
        # Threads of its own: each waits for as long as a seed is silent.
        with _Threads(len(self._others)) as threads:
            asked = [asyncio.create_task(self._ask(threads, seed, identity)) for seed in self._others]
            try:
                for answer in asyncio.as_completed(asked):
                    if (place := await answer) is not None:
                        return place
            finally:
                await _cancel(asked)
        return None

    async def _ask(self, threads: concurrent.futures.Executor, seed: str, identity: int) -> Place | None:
        client = AdminClient(seed, cluster=self._cluster)
        call = functools.partial(client.join, self.name, identity, self.advertise, {}, _ASK_TIMEOUT)
        try:
            number, members = await asyncio.get_running_loop().run_in_executor(threads, call)
        except AdminError as error:
            self._hear(seed, error)
            return None
        finally:
            client.give_up()  # nobody waits for it any more
        return Place(number, self.name, self._beside(number, members), identity, is_new=True, is_final=True)

    def _beside(self, number: int, members: dict[int, str]) -> dict[int, str]:
        # Whoever had this address before is gone.
        others = {other: address for other, address in members.items() if not _same(address, self.advertise)}
        return {**others, number: self.advertise}

    def _hear(self, seed: str, error: AdminError) -> None:
        self._is_founded |= error.kind in _FOUNDED
        self._answers[seed] = str(error)
        if (said := (seed, error.kind)) not in self._said:
            self._said.add(said)
            level = _LEVELS.get(error.kind, logging.DEBUG)
            _log.log(level, "%s", f"{self.name!r} got no place in cluster {self._cluster!r} from {seed}: {error}")


class _Threads(concurrent.futures.ThreadPoolExecutor):
    """What runs on them ends by itself within a moment: leaving them waits for nothing."""

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=False, cancel_futures=True)


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _leader(core: Core) -> None:
    """Wait until `core` knows of a leader: it belongs to a cluster then."""
    while (known := core.leadership)[2] is None:
        await core.wait_leadership(known[0])


def check_seeds(name: object, seeds: object, expect: object, *, advertise: str | None, cluster: str) -> Seeds:
    """Return how a node of that name finds its place. Raises `ConfigError`."""
    missing = [
        what for what, given in (("name", name), ("seeds", seeds), ("bootstrap_expect", expect)) if given is None
    ]
    if missing:
        raise ConfigError(
            f"{missing[0]}= is missing: a node that finds its place needs all of name=, seeds= and bootstrap_expect="
        )
    if not isinstance(name, str) or not is_utf8(name) or not 1 <= len(name.encode()) <= _NAME_BYTES_MAX:
        raise ConfigError(
            f"name = {shown(name)}: it must be a text of 1 to {_NAME_BYTES_MAX} bytes in UTF-8, the node's own"
        )
    listed = _as_list(seeds)
    if not listed:
        raise ConfigError(
            f"seeds = {shown(seeds)}: it must list the addresses of some nodes, such as "
            '["app-0.app:7400", "app-1.app:7400", "app-2.app:7400"], the same on every node'
        )
    for at, seed in enumerate(listed):
        check_reachable(f"seeds[{at}]", seed)
        if any(_same(seed, other) for other in listed[:at]):
            raise ConfigError(f"seeds[{at}] = {shown(seed)} is listed twice: each node has an address of its own")
    if not isinstance(expect, int) or isinstance(expect, bool) or not 1 <= expect <= len(listed):
        raise ConfigError(
            f"bootstrap_expect = {shown(expect)}: it must say how many of the seeds found the cluster, from 1 to "
            f"{len(listed)}, the same on every node; 3 is usual"
        )
    return Seeds(name, listed, expect, _own_address(name, listed, advertise), cluster)


def _as_list(seeds: object) -> list[str]:
    """Return what is listed; nothing if that is no list."""
    return [] if isinstance(seeds, str) or not isinstance(seeds, Sequence) else list(cast("Sequence[str]", seeds))


def _own_address(name: str, seeds: Sequence[str], advertise: str | None) -> str:
    if advertise is not None:
        return advertise
    for seed in seeds:
        host, _ = parse_address("a seed", seed)
        if name in (host, host.split(".")[0]):
            return seed
    raise ConfigError(
        f"advertise= is missing, and none of the seeds is {name!r}: give the address at which others reach this node"
    )


def _same(one: str, other: str) -> bool:
    return _canonical(one) == _canonical(other)


def _canonical(address: str) -> tuple[str, int]:
    host, port = parse_address("an address", address)
    return canonical(host), port
