"""Brings the faults of a schedule over processes, disks and network; each is gone again when its time is over."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import itertools
import pathlib
import signal
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

from disks import Disks
from network import Network
from processes import Process, Processes
from schedule import LEADER, Fault

CLIENTS = 6
"""Of each node."""
PATIENCE_S = 5.0
"""For a change of the members, until somebody else is asked for it."""
HEARD_S = 30.0
"""In which a removed node must hear of it; no network fault lasts so long."""


class Cluster(Processes):
    """The processes by their seats, and the histories that their clients write: one file for each start."""

    program = pathlib.Path(__file__).with_name("chaos_node.py")
    deadline_s = 60.0  # a restart applies the whole log again, on a machine that may be busy

    def __init__(
        self,
        folder: pathlib.Path,
        doors: dict[int, str],
        seats: int,
        seed: int,
        settings: dict[str, Any],
        histories: pathlib.Path,
        breaks: str,
    ) -> None:
        """The first of those at the `doors` take the seats."""
        super().__init__(folder, {number: doors[number] for number in range(1, seats + 1)}, seed, settings)
        self.gone: list[Process] = []
        """Whose seats others have taken."""
        self.coming: list[Process] = []
        """Who may have no seat yet."""
        self._folder = folder
        self._doors = doors
        self._settings = settings
        self._numbers = itertools.count(seats + 1)
        self.histories = histories
        self.killed: set[str] = set()
        """Incarnations whose last calls may have no end."""
        self._breaks = breaks

    async def begin(self, processes: Iterable[Process]) -> None:
        """Start processes and their clients, whatever state the cluster is in."""

        async def begin_one(process: Process) -> None:
            await process.start()
            await self.load(process)

        await asyncio.gather(*map(begin_one, processes))

    async def load(self, process: Process) -> None:
        """Start the clients of one that runs."""
        history = str(self.histories / process.incarnation)
        await process.ask("load", in_flight=CLIENTS, history=history, breaks=self._breaks)

    def kill(self, process: Process) -> None:
        self.killed.add(process.incarnation)
        process.send_kill()

    def newest_leader(self) -> Process | None:
        """Return whom somebody said to lead in the highest term."""
        newest = [process.leaderships[-1] for process in self.running if process.leaderships]
        leaders = {said.term: said.leader for said in newest if said.leader is not None}
        leader = leaders[max(leaders)] if leaders else None
        return next((process for process in self.all if process.number == leader), None)

    def newcomer(self) -> Process:
        """Return a node that is to become a member: it knows those that are, and itself."""
        number = next(self._numbers)
        members = {known: self._doors[known] for known in (number, *(process.number for process in self.all))}
        self.coming.append(Process(self, number, members, self._folder, self._settings))
        return self.coming[-1]

    def door(self, process: Process) -> str:
        return self._doors[process.number]

    def take_seat(self, old: Process, new: Process) -> None:
        self.gone.append(old)
        self.all[self.all.index(old)] = new
        self.coming.remove(new)


class Faults:
    """Brings them."""

    def __init__(self, cluster: Cluster, network: Network, disks: Disks) -> None:
        self.happened: collections.Counter[str] = collections.Counter()
        self._cluster = cluster
        self._network = network
        self._disks = disks
        self._disk_faults: collections.defaultdict[int, list[str]] = collections.defaultdict(list)
        self._changing = [asyncio.Lock() for _ in cluster.all]
        """By seat: whoever ends a process starts it again before another ends it."""
        self._changing_members = asyncio.Lock()
        """One change of the members after the other: never more than one seat has no vote."""
        self._frozen: set[int] = set()

    async def bring(self, schedule: Iterable[Fault]) -> None:
        """Return when all of them are over."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as tasks:
            for fault in schedule:
                await asyncio.sleep(began + fault.at_s - loop.time())
                tasks.create_task(self._bring(fault))

    async def _bring(self, fault: Fault) -> None:
        match fault.kind:
            case "killed":
                await self._kill(fault)
            case "closed":
                await self._close(fault)
            case "frozen":
                await self._freeze(fault)
            case "slow disk":
                await self._slow_down(fault)
            case "failed disk":
                await self._fail_disk(fault)
            case "replaced":
                await self._replace(fault)
            case "removed":
                await self._remove(fault)
            case "demoted":
                await self._demote(fault)
            case _:
                await self._disturb_network(fault)

    # Processes

    async def _kill(self, fault: Fault) -> None:
        async with self._taken(fault.nodes) as victims:
            for victim in victims:
                self._cluster.kill(victim)
            await asyncio.gather(*(victim.killed() for victim in victims))
            self.happened["killed"] += len(victims)
            await asyncio.sleep(fault.seconds)
            await self._cluster.begin(victims)

    async def _close(self, fault: Fault) -> None:
        async with self._taken(fault.nodes) as victims:
            await asyncio.gather(*(victim.close() for victim in victims))
            self.happened["closed"] += len(victims)
            await asyncio.sleep(fault.seconds)
            await self._cluster.begin(victims)

    async def _freeze(self, fault: Fault) -> None:
        victims = [one for one in self._named(fault.nodes) if one.is_running and one.number not in self._frozen]
        numbers = {victim.number for victim in victims}
        self._frozen |= numbers
        for victim in victims:
            victim.send_signal(signal.SIGSTOP)
        self.happened["frozen"] += len(victims)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            for victim in victims:
                if victim.is_running:
                    victim.send_signal(signal.SIGCONT)
            self._frozen -= numbers

    # Disks

    async def _slow_down(self, fault: Fault) -> None:
        with contextlib.ExitStack() as stack:
            for victim in self._named(fault.nodes):
                stack.enter_context(self._disk_fault(victim.number, f"slow 0 {fault.delay_s * 1000:.0f} *"))
                self.happened["slow disk"] += 1
            await asyncio.sleep(fault.seconds)

    async def _fail_disk(self, fault: Fault) -> None:
        """From now on no fsync succeeds: the node must stop by itself at its next one."""
        async with self._taken(fault.nodes) as victims:
            for victim in victims:
                with self._disk_fault(victim.number, f"sync {errno.EIO} 0 *"):
                    if await self._stopped(victim, fault.seconds):
                        self.happened["failed disk"] += 1
                        await victim.end()  # in good order: status 0
                    else:  # it had nothing to write
                        self._cluster.kill(victim)
                        await victim.killed()
                        self.happened["killed"] += 1
            await self._cluster.begin(victims)

    async def _stopped(self, process: Process, within_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while process.stopped is None:
                    process.check()
                    self._cluster.news.clear()
                    await self._cluster.news.wait()
        return process.stopped is not None

    @contextlib.contextmanager
    def _disk_fault(self, node: int, line: str) -> Iterator[None]:
        self._disk_faults[node].append(line)
        self._write_disk_faults(node)
        try:
            yield
        finally:
            self._disk_faults[node].remove(line)
            self._write_disk_faults(node)

    def _write_disk_faults(self, node: int) -> None:
        self._disks.fail(f"node-{node}", *self._disk_faults[node])

    # The network

    async def _disturb_network(self, fault: Fault) -> None:
        self.happened[fault.kind] += 1
        with contextlib.ExitStack() as stack:
            ways = [(self._in_seat(one).number, self._in_seat(other).number) for one, other in fault.ways]
            for name in ways:
                way = self._network.ways[name]
                if fault.delay_s:
                    stack.enter_context(way.delayed(fault.delay_s))
                elif fault.kind != "broken":
                    stack.enter_context(way.held())
            await asyncio.sleep(fault.seconds)
            if fault.breaks:
                self._network.break_connections(ways)

    # The members

    async def _replace(self, fault: Fault) -> None:
        """Another node takes the seat, in one change."""
        async with self._changing_members, self._taken(fault.nodes) as victims:
            for old in victims:
                new = self._cluster.newcomer()
                await new.start()
                arguments = {"old": old.number, "new": new.number, "address": self._cluster.door(new)}
                await self._asked_until_done(old, "replace", **arguments)
                await self._gone(old)
                await self._seated(old, new)
                self.happened["replaced"] += 1

    async def _remove(self, fault: Fault) -> None:
        """A node leaves, and after a while another one takes its seat."""
        async with self._changing_members, self._taken(fault.nodes) as victims:
            for old in victims:
                await self._asked_until_done(old, "change", what="Remove", id=old.number)
                await self._gone(old)
                await asyncio.sleep(fault.seconds)
                new = self._cluster.newcomer()
                await new.start()
                address = self._cluster.door(new)
                await self._asked_until_done(old, "change", what="AddLearner", id=new.number, address=address)
                await self._asked_until_done(old, "change", what="Promote", id=new.number)
                await self._seated(old, new)
                self.happened["removed"] += 1

    async def _demote(self, fault: Fault) -> None:
        async with self._changing_members:
            for victim in self._named(fault.nodes):
                await self._asked_until_done(victim, "change", what="Demote", id=victim.number)
                await asyncio.sleep(fault.seconds)
                await self._asked_until_done(victim, "change", what="Promote", id=victim.number)
                self.happened["demoted"] += 1

    async def _asked_until_done(self, about: Process, do: str, **arguments: Any) -> None:
        """Ask one after the other; whoever is asked may be down, cut off or killed meanwhile."""
        trouble = "nobody ran"
        try:
            async with asyncio.timeout(self._cluster.deadline_s):
                while True:
                    for process in self._cluster.all:
                        if process is about or not process.is_running:
                            continue
                        try:
                            await process.ask(do, patience_s=PATIENCE_S, **arguments)
                        except AssertionError as error:
                            trouble = str(error)
                        else:
                            return
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"never done: {do} {arguments}; the last that was said of it: {trouble}") from None

    async def _gone(self, old: Process) -> None:
        """It hears that it was removed, and its calls end."""
        assert await self._stopped(old, HEARD_S), f"node {old.number} has not heard in {HEARD_S:g} s of its removal"
        assert old.stopped is not None
        assert "was removed from its cluster" in old.stopped, old.stopped
        await old.end()

    async def _seated(self, old: Process, new: Process) -> None:
        self._cluster.take_seat(old, new)
        await self._cluster.load(new)

    # Who is hit

    def _in_seat(self, node: int) -> Process:
        return self._cluster.all[node - 1]

    def _named(self, nodes: Iterable[int]) -> list[Process]:
        named = [self._cluster.newest_leader() if node == LEADER else self._in_seat(node) for node in nodes]
        return [process for process in named if process is not None]

    @contextlib.asynccontextmanager
    async def _taken(self, nodes: Iterable[int]) -> AsyncIterator[list[Process]]:
        """Those of the nodes that nobody else is about to end or to start."""
        locks = {process: self._changing[self._cluster.all.index(process)] for process in self._named(nodes)}
        free = {process: lock for process, lock in locks.items() if not lock.locked()}
        async with contextlib.AsyncExitStack() as stack:
            for lock in free.values():
                await stack.enter_async_context(lock)
            yield list(free)
