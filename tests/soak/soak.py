"""Three processes under a light and steady load and random faults: is memory flat, and is every command counted once?

    make soak SECONDS=3600

Node 1 is frozen, held up and cut off like the others, but never killed: its memory, threads and descriptors tell of
leaks. All take snapshots, a few in a minute. Ends with status 1 if its memory or its log grows, if a thread, a socket
or a snapshot's file is left over, or if a command was lost or doubled.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "python"))

from counting_node import ACKNOWLEDGED, NOT_COMMITTED, UNKNOWN, WITHOUT_RESULT  # noqa: E402
from figures import Figures, check_memory, figures_of  # noqa: E402
from ledger import Ledger  # noqa: E402
from links import Link  # noqa: E402
from processes import Process, Processes, make_random, reserved_addresses  # noqa: E402
from soak_node import LEFT  # noqa: E402

WORKERS = 6
SAMPLES = 600
"""In a whole run, at most one a second."""
SETTINGS = {
    "propose_timeout": 20.0,
    "entry_cache_bytes": 1024 * 1024,  # full soon, so that it does not look like growth
    "max_unapplied_bytes": 1024 * 1024,
    "snapshot_entries": 2000,
    "snapshot_trail": 500,
}
LOG_ENTRIES_MAX = 10 * (2000 + 500)
"""In the log of a node: it is kept for a minute for a follower that is on its way back, and most faults are shorter."""
STRANGE = (
    b"",
    b"\0",
    b"\xff" * 64,
    b"GET / HTTP/1.1\r\n\r\n",
    random.Random(1).randbytes(100_000),
)


class Soaked(Processes):
    """The processes, and bits for what became of their commands."""

    program = HERE / "soak_node.py"
    deadline_s = 120.0  # a restart applies the whole log again, on a machine that may be busy

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.acknowledged = Ledger()
        self.refused = Ledger()
        self.wrong: list[str] = []
        self.ends: collections.Counter[str] = collections.Counter()

    def note(self, number: int, fates: dict[str, str]) -> None:
        for name, fate in fates.items():
            self.ends[fate] += 1
            if fate in (ACKNOWLEDGED, WITHOUT_RESULT):
                self.acknowledged.add(name)
            elif fate == NOT_COMMITTED:
                self.refused.add(name)
            elif fate not in (UNKNOWN, LEFT):
                self.wrong.append(f"{name}: {fate}")


class Faults:
    """Brings faults over the processes until it is to cease; each kind by itself, at random moments."""

    def __init__(self, processes: Soaked, links: list[Link], listening: dict[int, str], chance: random.Random) -> None:
        self.happened: collections.Counter[str] = collections.Counter()
        self._processes = processes
        self._links = links
        self._listening = listening
        self._random = chance
        self._over = asyncio.Event()

    def cease(self) -> None:
        """Mend what is broken, and bring no more."""
        self._over.set()

    async def bring(self) -> None:
        """Run until `cease`, or until a process does what it must not."""
        async with asyncio.TaskGroup() as tasks:
            for fault, rarely_s in ((self.end, 40.0), (self.freeze, 12.0), (self.disconnect, 8.0), (self.intrude, 2.0)):
                tasks.create_task(self._again_and_again(fault, rarely_s))

    async def _again_and_again(self, fault: Callable[[], Coroutine[Any, Any, str]], rarely_s: float) -> None:
        while True:
            await self._pause(rarely_s)
            if self._over.is_set():
                return
            self.happened[await fault()] += 1

    async def _pause(self, up_to_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), self._random.uniform(0, up_to_s))

    async def end(self) -> str:
        """Kill or close one process or two, never the first, and start them again."""
        first, second = self._processes.all[1:]
        victims = self._random.choice(([first], [second], [first, second]))
        how = self._random.choice(("killed", "killed", "closed"))
        if how == "killed":
            for victim in victims:
                victim.send_kill()
            await asyncio.gather(*(victim.killed() for victim in victims))
        else:
            await asyncio.gather(*(victim.close() for victim in victims))
        await self._pause(5.0)
        for victim in victims:
            await victim.start()
        await self._processes.ask(victims, "ready")
        await self._processes.ask(victims, "load", in_flight=WORKERS)
        return how

    async def freeze(self) -> str:
        """Stop a process where it stands, and let it go on."""
        frozen = self._random.choice(self._processes.running)
        frozen.send_signal(signal.SIGSTOP)
        try:
            await self._pause(4.0)
        finally:
            if frozen.is_running:
                frozen.send_signal(signal.SIGCONT)
        return "frozen"

    async def disconnect(self) -> str:
        """Hold up or break what goes to one node, or to all."""
        links = self._random.choice([*([link] for link in self._links), self._links])
        if self._random.random() < 0.5:
            for link in links:
                link.cut()
            return "cut off"
        for link in links:
            link.stall()
        try:
            await self._pause(5.0)
        finally:
            for link in links:
                link.heal()
        return "held up"

    async def intrude(self) -> str:
        """Come as a stranger, talk nonsense or nothing, and stay for a while."""
        host, port = self._random.choice(list(self._listening.values())).rsplit(":", 1)
        with contextlib.suppress(OSError):  # it may be down, and it may hang up at once
            connections = [await asyncio.open_connection(host, int(port)) for _ in range(self._random.randrange(1, 10))]
            for _, writer in connections:
                writer.write(self._random.choice(STRANGE))
            await self._pause(2.0)
            for _, writer in connections:
                writer.transport.abort()
        return "intruded"


class Soak:
    """One run."""

    def __init__(self, processes: Soaked, faults: Faults, seconds: float) -> None:
        self._processes = processes
        self._faults = faults
        self._seconds = seconds
        self._samples: list[Figures] = []
        self._steady = processes.all[0]

    async def run(self) -> list[str]:
        """Return what is wrong."""
        await self._processes.ask(self._processes.all, "load", in_flight=WORKERS)
        calm = await self._sample()
        bringing = asyncio.create_task(self._faults.bring())
        try:
            await self._watch(bringing)
            self._faults.cease()
            await bringing
        finally:
            bringing.cancel()
            await asyncio.wait([bringing])
        say("the faults are over")
        await self._processes.ask(self._processes.all, "stop")
        sentence, is_flat = check_memory(self._samples)
        say(sentence)
        longest = max(sample.log_entries for sample in self._samples)
        say(f"the log of node 1 had {longest:,} entries at most, allowed {LOG_ENTRIES_MAX:,}")
        return [
            *([] if is_flat else ["memory grows"]),
            *([] if longest <= LOG_ENTRIES_MAX else ["the log grows"]),
            *await self._count(),
            *await self._look_for_leftovers(calm),
            *self._processes.wrong,
            *(fault for process in self._processes.all for fault in process.faults()),
        ]

    async def _watch(self, bringing: asyncio.Task[None]) -> None:
        """Take samples, and print a line a minute."""
        began = time.monotonic()
        every_s = max(1.0, self._seconds / SAMPLES)
        next_line_s = 0.0
        while (elapsed_s := time.monotonic() - began) < self._seconds and not bringing.done():
            self._samples.append(await self._sample())
            if elapsed_s >= next_line_s:
                next_line_s += 60.0
                self._print(elapsed_s)
                if any(process.faults() for process in self._processes.all) or self._processes.wrong:
                    return
            await asyncio.wait([bringing], timeout=every_s)
        self._print(time.monotonic() - began)

    async def _sample(self) -> Figures:
        status = await self._steady.ask("status")
        log_entries = status["last_index"] - status["first_index"] + 1
        figures = figures_of(self._steady.pid)
        return dataclasses.replace(
            figures, entries=status["last_index"], log_entries=log_entries, log_bytes=status["log_bytes"]
        )

    def _print(self, elapsed_s: float) -> None:
        newest = self._samples[-1]
        counts = " ".join(f"{what}={count}" for what, count in sorted(self._faults.happened.items()))
        ends = " ".join(f"{what.replace(' ', '-')}={count}" for what, count in sorted(self._processes.ends.items()))
        log = f"{newest.log_entries:,} in a log of {newest.log_bytes / 2**20:.0f} MiB"
        say(f"{elapsed_s:6.0f} s  {newest.entries:,} entries, {log}  {counts}  {ends}")
        for process in self._processes.running:
            with contextlib.suppress(OSError):  # it may just be ending
                say(f"          node {process.incarnation:<6} {figures_of(process.pid)}")

    async def _count(self) -> list[str]:
        """Compare what the replicas hold with what the proposers were told."""
        reports = await self._processes.ask(self._processes.all, "report")
        problems = []
        for report in reports:
            if report["applied"] != reports[0]["applied"] or report["sequence"] != reports[0]["sequence"]:
                problems.append("the replicas differ")
            if report["read"] != report["sequence"]:
                problems.append(f"commits() gave {report['read']} where {report['sequence']} was applied")
        applied = Ledger.load(reports[0]["applied"])
        problems += [f"{name} was acknowledged, and is lost" for name in self._processes.acknowledged - applied]
        problems += [f"{name} was refused, and is applied" for name in self._processes.refused & applied]
        if int(reports[0]["sequence"].split()[0]) != len(applied):
            problems.append("a command was applied twice")
        say(f"{len(applied):,} commands applied, {len(self._processes.acknowledged):,} of them acknowledged")
        return problems

    async def _look_for_leftovers(self, calm: Figures) -> list[str]:
        """Threads and sockets of the process that lived through it all must come back to what they were."""
        deadline = time.monotonic() + 60.0
        while (now := figures_of(self._steady.pid)).threads > calm.threads or now.sockets > calm.sockets:
            if time.monotonic() > deadline:
                return [f"node 1 had {calm} before the faults, and has {now} a minute after them"]
            await asyncio.sleep(0.5)
        # The newest, and what has come of one that was not needed after all, until the next one is taken.
        while any(len(files) > 2 for files in self._snapshot_files().values()):
            if time.monotonic() > deadline:
                return [f"snapshots' files are left over: {self._snapshot_files()}"]
            await asyncio.sleep(0.5)
        return []

    def _snapshot_files(self) -> dict[int, list[str]]:
        """Of each node."""
        return {
            process.number: [file.name for file in (process.data_dir / "snapshots").iterdir()]
            for process in self._processes.all
        }


@contextlib.asynccontextmanager
async def soaked(folder: pathlib.Path, chance: random.Random) -> AsyncIterator[tuple[Soaked, Faults]]:
    """Three processes, each behind a link, and the faults that may come over them."""
    with reserved_addresses(3) as listening:
        links = [Link(address) for address in listening.values()]
        for link in links:
            await link.start()
        members = {number: link.address for number, link in enumerate(links, start=1)}
        processes = Soaked(folder, members, chance.randrange(10**9), SETTINGS | {"listen": listening})
        try:
            await processes.start()
            yield processes, Faults(processes, links, listening, random.Random(chance.random()))
        finally:
            running: list[Process] = processes.running
            for process in running:
                process.send_signal(signal.SIGCONT)
                process.send_kill()
            await asyncio.gather(*(process.ended() for process in running))
            for link in links:
                await link.close()


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def main(seconds: float, folder: pathlib.Path) -> list[str]:
    chance = make_random()
    async with soaked(folder, chance) as (processes, faults):
        return await Soak(processes, faults, seconds).run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3600.0, help="of load and faults")
    options = parser.parse_args()
    root = pathlib.Path(tempfile.mkdtemp(dir=pathlib.Path.cwd(), prefix=".soak-"))
    found = asyncio.run(main(options.seconds, root))
    for problem in found[:50]:
        say(problem)
    say(f"{len(found)} problems; the logs are in {root}" if found else "memory is flat, and every command counts once")
    if found:
        sys.exit(1)
    shutil.rmtree(root)
