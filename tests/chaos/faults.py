"""Brings the faults of a schedule over processes, disks and network; each is gone again when its time is over."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
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


class Cluster(Processes):
    """The processes, and the histories that their clients write: one file for each start."""

    program = pathlib.Path(__file__).with_name("chaos_node.py")
    deadline_s = 60.0  # a restart applies the whole log again, on a machine that may be busy

    def __init__(self, *arguments: Any, histories: pathlib.Path, breaks: str) -> None:
        super().__init__(*arguments)
        self.histories = histories
        self.killed: set[str] = set()
        """Incarnations whose last calls may have no end."""
        self._breaks = breaks

    async def begin(self, processes: Iterable[Process]) -> None:
        """Start processes and their clients, whatever state the cluster is in."""

        async def begin_one(process: Process) -> None:
            await process.start()
            history = str(self.histories / process.incarnation)
            await process.ask("load", in_flight=CLIENTS, history=history, breaks=self._breaks)

        await asyncio.gather(*map(begin_one, processes))

    def kill(self, process: Process) -> None:
        self.killed.add(process.incarnation)
        process.send_kill()

    def newest_leader(self) -> Process | None:
        """Return whom somebody said to lead in the highest term."""
        newest = [process.leaderships[-1] for process in self.running if process.leaderships]
        leaders = {said.term: said.leader for said in newest if said.leader is not None}
        return self.all[leaders[max(leaders)] - 1] if leaders else None


class Faults:
    """Brings them."""

    def __init__(self, cluster: Cluster, network: Network, disks: Disks) -> None:
        self.happened: collections.Counter[str] = collections.Counter()
        self._cluster = cluster
        self._network = network
        self._disks = disks
        self._disk_faults: collections.defaultdict[int, list[str]] = collections.defaultdict(list)
        self._changing = {process.number: asyncio.Lock() for process in cluster.all}
        """Whoever ends a process starts it again before another ends it."""
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
            for name in fault.ways:
                way = self._network.ways[name]
                if fault.delay_s:
                    stack.enter_context(way.delayed(fault.delay_s))
                elif fault.kind != "broken":
                    stack.enter_context(way.held())
            await asyncio.sleep(fault.seconds)
            if fault.breaks:
                self._network.break_connections(fault.ways)

    # Who is hit

    def _named(self, nodes: Iterable[int]) -> list[Process]:
        named = [self._cluster.newest_leader() if node == LEADER else self._cluster.all[node - 1] for node in nodes]
        return [process for process in named if process is not None]

    @contextlib.asynccontextmanager
    async def _taken(self, nodes: Iterable[int]) -> AsyncIterator[list[Process]]:
        """Those of the nodes that nobody else is about to end or to start."""
        free = [process for process in self._named(nodes) if not self._changing[process.number].locked()]
        async with contextlib.AsyncExitStack() as stack:
            for process in free:
                await stack.enter_async_context(self._changing[process.number])
            yield free
