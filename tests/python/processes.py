"""Three replicas, each a real process (`counting_node.py`), and what a test does to them."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import pathlib
import random
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeVar

import aioraft
from counting_node import ACKNOWLEDGED, NOT_COMMITTED, UNKNOWN, WITHOUT_RESULT

T = TypeVar("T")
P = TypeVar("P", bound="Processes")

HERE = pathlib.Path(__file__).parent
DEADLINE_S = 30.0
SEED_VARIABLE = "AIORAFT_TEST_SEED"
QUICK_ELECTIONS = {"election_timeout": 0.3, "heartbeat_interval": 0.03}
# Python's tracebacks and Rust's panics; a node's process must leave neither in its log.
FAULT = re.compile(r"Traceback|panicked|Fatal Python error|never retrieved|Exception ignored")


def make_random() -> random.Random:
    """Return a source of randomness whose seed is printed, and can be given to have the same again."""
    seed = os.environ.get(SEED_VARIABLE) or str(random.SystemRandom().randrange(10**9))
    sys.stdout.write(f"{SEED_VARIABLE}={seed}\n")
    return random.Random(seed)


@contextlib.contextmanager
def reserved_addresses(count: int) -> Iterator[dict[int, str]]:
    """Addresses with ports chosen by the system, which stay reserved while no node listens there.

    A socket that is bound and never listens does not stand in the way of one that does (SO_REUSEADDR), and the
    system gives its port to nobody who does not ask for it by number.
    """
    with contextlib.ExitStack() as stack:
        members: dict[int, str] = {}
        for number in range(1, count + 1):
            reserved = stack.enter_context(socket.socket())
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind(("127.0.0.1", 0))
            members[number] = f"127.0.0.1:{reserved.getsockname()[1]}"
        yield members


class Process:
    """One replica; each start of it is an incarnation, whose commands have names of their own."""

    def __init__(
        self, cluster: Processes, number: int, members: dict[int, str], folder: pathlib.Path, settings: dict[str, Any]
    ) -> None:
        self.number = number
        self.incarnation = ""
        self.starts = 0
        self.leaderships: list[aioraft.Leadership] = []
        self.is_blocking = False
        self.stages: list[str] = []
        self.stopped: str | None = None
        self.log = folder / f"node-{number}.log"
        self._cluster = cluster
        self._settings = settings | {
            "number": number,
            "members": members,
            "data_dir": str(folder / f"node-{number}"),
        }
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._asked = 0
        self._may_end = False

    @property
    def data_dir(self) -> pathlib.Path:
        return pathlib.Path(self._settings["data_dir"])

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._settings["members"][self.number].rsplit(":", 1)
        return host, int(port)

    @property
    def is_running(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def resident_bytes(self) -> int:
        """The memory that it holds."""
        return int(pathlib.Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async def start(self) -> None:
        assert self._process is None
        self.starts += 1
        self.incarnation = f"{self.number}.{self.starts}"
        self.leaderships = []
        self.stages = []
        self.stopped = None
        self._may_end = False
        self._settings |= {"incarnation": self.incarnation, "seed": f"{self._cluster.seed} {self.incarnation}"}
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(self._cluster.program),
                json.dumps(self._settings),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=2**26,
            )
        assert self._process.stdout is not None
        self._listening = asyncio.create_task(self._listen(self._process.stdout))

    async def ask(self, do: str, **arguments: Any) -> Any:
        """Have it do something, and return its answer."""
        return await self._in_time(self.asking(do, **arguments), f"was asked: {do}")

    def asking(self, do: str, **arguments: Any) -> asyncio.Future[Any]:
        """Have it do something; its answer is for later."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._asked += 1
        self._process.stdin.write(json.dumps({"ask": self._asked, "do": do, **arguments}).encode() + b"\n")
        answer = self._answers[self._asked] = asyncio.get_running_loop().create_future()
        return answer

    def send_kill(self) -> None:
        self._may_end = True
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):  # it may have ended in some other way
            self._process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL it, and take in the last that it said."""
        self.send_kill()
        await self.killed()

    async def killed(self) -> None:
        """Wait until `send_kill` has done its work."""
        status = await self.ended()
        assert status == -signal.SIGKILL, f"it ended by itself, with {status}; {self._tail()}"

    async def close(self) -> int:
        """Have it close its node and end; return how many commands this incarnation has proposed."""
        self._may_end = True
        proposed: int = await self.ask("close")
        await self.end()
        return proposed

    async def end(self) -> None:
        """Let it end by itself, in good order."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._may_end = True
        self._process.stdin.close()
        status = await self.ended()
        assert status == 0, f"it ended with {status}; {self._tail()}"

    async def ended(self) -> int:
        """Wait until it has ended and all that it said is taken in; return its exit status."""
        assert self._process is not None
        assert self._listening is not None
        await self._in_time(self._listening, "was to end")
        status = await self._in_time(self._process.wait(), "was to end")
        self._process = self._listening = None
        return status

    def check(self) -> None:
        """Raise if it ended by itself."""
        if self._listening is not None and self._listening.done() and not self._may_end:
            self._listening.result()
            raise AssertionError(f"node {self.number} ended by itself; {self._tail()}")

    def said(self, text: str) -> bool:
        """Whether its log holds `text`."""
        return text in self.log.read_text(errors="replace")

    def faults(self) -> list[str]:
        return [line for line in self.log.read_text(errors="replace").splitlines() if FAULT.search(line)]

    async def _in_time(self, awaitable: Awaitable[T], what: str) -> T:
        return await _in_time(awaitable, f"node {self.number} {what}", self._cluster.deadline_s)

    def _tail(self) -> str:
        return f"the end of {self.log}:\n{self.log.read_text(errors='replace')[-3000:]}"

    async def _listen(self, lines: asyncio.StreamReader) -> None:
        try:
            async for line in lines:
                if not line.endswith(b"\n"):
                    break  # it was killed while it wrote
                message = json.loads(line)
                match message.get("event"):
                    case "fates":
                        self._cluster.note(self.number, message["fates"])
                    case "leadership":
                        self.leaderships.append(aioraft.Leadership(message["term"], message["leader"]))
                    case "stopped":
                        self.stopped = message["message"]
                    case "blocking":
                        self.is_blocking = True
                    case "stage":
                        self.stages.append(message["stage"])
                    case _:
                        answer = self._answers.pop(message["ask"])
                        if answer.done():
                            pass
                        elif "error" in message:
                            answer.set_exception(AssertionError(f"node {self.number}: {message['error']}"))
                        else:
                            answer.set_result(message["answer"])
                self._cluster.news.set()
        finally:
            self._cluster.news.set()
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(AssertionError(f"node {self.number} ended; {self._tail()}"))
                    answer.exception()  # someone may have asked without waiting for the answer
            self._answers.clear()


class Processes:
    """Three replicas as processes, and a ledger of what became of every command that they proposed."""

    program = HERE / "counting_node.py"
    deadline_s = DEADLINE_S
    succeeded: tuple[str, ...] = (ACKNOWLEDGED,)
    """Ends that a command has whose process lives."""

    def __init__(self, folder: pathlib.Path, members: dict[int, str], seed: int, settings: dict[str, Any]) -> None:
        self.seed = seed
        self.fates: dict[str, str] = {}  # by the command's name; those of a killed process may be missing
        self.progress: collections.Counter[int] = collections.Counter()  # fates by node
        self.news = asyncio.Event()
        self.all = [Process(self, number, members, folder, settings) for number in members]

    @property
    def running(self) -> list[Process]:
        return [process for process in self.all if process.is_running]

    def note(self, number: int, fates: dict[str, str]) -> None:
        """Node `number` says what became of some of its commands."""
        self.fates |= fates
        self.progress[number] += len(fates)

    async def start(self) -> None:
        """Start those that are down, and wait until they have caught up."""
        down = [process for process in self.all if not process.is_running]
        for process in down:
            await process.start()
        await self.ask(down, "ready")

    async def ask(self, processes: Iterable[Process], do: str, **arguments: Any) -> list[Any]:
        """Ask several at once."""
        return await asyncio.gather(*(process.ask(do, **arguments) for process in processes))

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something that the processes say."""

        async def wait() -> None:
            while not condition():
                for process in self.running:
                    process.check()
                self.news.clear()
                await self.news.wait()

        await _in_time(wait(), what, self.deadline_s)

    async def more(self, processes: Iterable[Process], count: int) -> None:
        """Wait until each of `processes` has had answers to `count` more commands."""
        goals = {process.number: self.progress[process.number] + count for process in processes}
        await self.until(
            lambda: all(self.progress[number] >= goal for number, goal in goals.items()), f"{count} more answers each"
        )

    async def leader(self, *, after_term: int = 0) -> Process:
        """Wait until all that run and have not stopped name the same leader, one of them, in a term after `after_term`."""
        await self.until(lambda: self._leader(after_term) is not None, f"a leader after term {after_term}")
        leader = self._leader(after_term)
        assert leader is not None
        return leader

    def _leader(self, after_term: int) -> Process | None:
        nodes = [process for process in self.running if process.stopped is None]
        newest = {process.leaderships[-1] if process.leaderships else None for process in nodes}
        if len(newest) != 1:
            return None
        (leadership,) = newest
        if leadership is None or leadership.leader is None or leadership.term <= after_term:
            return None
        leader = self.all[leadership.leader - 1]
        return leader if leader in nodes else None

    async def stop_load(self) -> None:
        """Stop proposing everywhere; every command of a process that lives must have been acknowledged."""
        running = self.running
        for process, proposed in zip(running, await self.ask(running, "stop"), strict=True):
            names = [f"{process.incarnation}.{number}" for number in range(proposed)]
            fates = {name: self.fates.get(name, "not said") for name in names}
            failed = {name: fate for name, fate in fates.items() if fate not in self.succeeded}
            assert not failed, f"node {process.number} lived and yet not all of its commands succeeded: {failed}"

    async def assert_counted_once(self) -> None:
        """All run, replicas are equal, and each command counts as often as its proposer was told."""
        reports = await self.ask(self.all, "report")
        digests = [report["digest"] for report in reports]
        assert len(set(digests)) == 1, f"the replicas differ: {digests}"
        counts: dict[str, int] = reports[0]["counts"]
        assert all(report["counts"] == counts for report in reports), "the replicas differ"
        doubled = {name: count for name, count in counts.items() if count != 1}
        assert not doubled, f"applied more than once: {doubled}"
        for name, fate in self.fates.items():
            if fate in (ACKNOWLEDGED, WITHOUT_RESULT):
                assert name in counts, f"{name} was acknowledged, and is lost"
            elif fate == NOT_COMMITTED:
                assert name not in counts, f"{name} was said to be committed never, and is applied"
            else:
                assert fate == UNKNOWN, f"what became of {name}: {fate}"
        # What was not answered was proposed by a process that was killed.
        living = tuple(f"{process.incarnation}." for process in self.all)
        unanswered = [name for name in counts if name not in self.fates and name.startswith(living)]
        assert not unanswered, f"applied, while the process that awaits them was told nothing: {unanswered}"


@contextlib.asynccontextmanager
async def three_of_kind(kind: type[P], folder: pathlib.Path, seed: int, **settings: Any) -> AsyncIterator[P]:
    """Start three replicas, and end them; those that a test leaves running must end in good order."""
    with reserved_addresses(3) as members:
        processes = kind(folder, members, seed, QUICK_ELECTIONS | {"propose_timeout": 20.0} | settings)
        try:
            await processes.start()
            yield processes
            await asyncio.gather(*(process.end() for process in processes.running))
            faults = [fault for process in processes.all for fault in process.faults()]
            assert not faults, f"the processes' logs in {folder} hold {faults}"
        finally:
            running = processes.running
            for process in running:
                process.send_kill()
            await asyncio.gather(*(process.ended() for process in running))


def three_processes(
    folder: pathlib.Path, seed: int, **settings: Any
) -> contextlib.AbstractAsyncContextManager[Processes]:
    """The same with the plain kind."""
    return three_of_kind(Processes, folder, seed, **settings)


async def _in_time(awaitable: Awaitable[T], what: str, deadline_s: float) -> T:
    try:
        async with asyncio.timeout(deadline_s):
            return await awaitable
    except TimeoutError:
        raise AssertionError(f"not within {deadline_s:g} s: {what}") from None
