"""Three real processes, one of them killed half-way, and not a word lost: `make demo`.

Every line of the input becomes a command. The lines are dealt out to three processes (`demo_node.py`), each of which
keeps many in flight. Half-way the leader is killed with SIGKILL, and started again once the others go on. In the end
all three replicas must hold what the input says. Exit status 1 if they do not.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import pathlib
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from demo_node import describe, digest

HERE = pathlib.Path(__file__).parent
TEXT = HERE / "demo.txt"
ROOT = pathlib.Path(".demo")
COMMANDS_MIN = 20_000
WINDOW = 2000  # lines that one process has in hand
LINE_BYTES_MAX = 1 << 20
STALL_S = 60.0
REFRESH_S = 0.1


class Failed(Exception):
    """The demo cannot go on, or its replicas do not agree."""


class Process:
    """One replica's process, and what it last said."""

    def __init__(self, number: int, members: dict[int, str], folder: pathlib.Path) -> None:
        self.number = number
        self.ready = False
        self.is_killed = False
        self.note = "starting"
        self.in_flight: dict[int, str] = {}
        self.status: dict[str, Any] = {}
        self.reproposals_before = 0  # of processes of this replica that were killed
        self.newest_term = (0, 0.0)
        self.finished: dict[str, Any] | None = None
        self.done_total = 0
        self._arguments = [str(number), json.dumps(members), str(folder / f"node-{number}")]
        self.log = folder / f"node-{number}.log"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.is_killed = False
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(HERE / "demo_node.py"),
                *self._arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=2**24,
                start_new_session=True,  # a Ctrl-C reaches the demo alone, which ends what it has started
            )

    async def messages(self) -> Any:
        """Iterate over what the process says, until it ends."""
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            with contextlib.suppress(json.JSONDecodeError):  # a killed process may leave half a line
                yield json.loads(line)

    def say(self, message: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def kill(self) -> None:
        assert self._process is not None
        self.is_killed = True
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()
        self.ready = False
        self.note = "killed"
        self.reproposals_before += self.status.get("reproposals", 0)
        self.status = {}

    async def stop(self) -> None:
        """End it politely, then not."""
        if self._process is None or self._process.returncode is not None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await self._process.wait()
        except TimeoutError:
            await self.kill()


class Demo:
    """Deals out the lines, kills the leader, and compares."""

    def __init__(self, lines: list[str], processes: list[Process], out: pathlib.Path | None) -> None:
        self._lines = lines
        self._processes = processes
        self._out = out
        self._queue = collections.deque((number, text, False) for number, text in enumerate(lines))
        self._done: set[int] = set()
        self._changed = asyncio.Event()
        self._killed: Process | None = None
        self._killed_at = 0.0
        self._killed_term = 0
        self.failover_ms: float | None = None

    @property
    def progress(self) -> str:
        text = f"{len(self._done):,} of {len(self._lines):,} commands acknowledged"
        if self._killed is not None:
            text += f"; leader {self._killed.number} of term {self._killed_term} killed"
        if self.failover_ms is not None:
            text += f", failover {self.failover_ms:,.0f} ms"
        return text

    async def run(self) -> None:
        """From the first line to three equal states."""
        async with asyncio.TaskGroup() as tasks:
            listening = [tasks.create_task(self._listen(process)) for process in self._processes]
            await self._until(lambda: all(process.ready for process in self._processes))
            await self._until(self._half_way)
            restarted = await self._kill_the_leader()
            await self._until(self._failed_over)
            await restarted.start()
            restarted.note = "starting again"
            listening.append(tasks.create_task(self._listen(restarted)))
            await self._until(lambda: len(self._done) == len(self._lines))
            await self._until(lambda: all(process.ready for process in self._processes))
            for process in self._processes:
                path = None if self._out is None else str(self._out / f"replica-{process.number}.json")
                process.say({"finish": path})
            await self._until(lambda: all(process.finished for process in self._processes))
            for task in listening:
                task.cancel()

    async def _until(self, condition: Any) -> None:
        """Wait for `condition`, dealing out lines meanwhile; fail if nothing happens for long."""
        progress, since = -1, time.monotonic()
        while not condition():
            if len(self._done) != progress:
                progress, since = len(self._done), time.monotonic()
            if time.monotonic() - since > STALL_S:
                raise Failed(
                    f"nothing went on for {STALL_S:.0f} s; the nodes' logs are {self._processes[0].log.parent}"
                )
            self._deal()
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):  # wait_for, before Python 3.12, may swallow a Ctrl-C
                    await self._changed.wait()

    def _deal(self) -> None:
        """Fill up the window of each process; a tenth of the lines is kept back until the leader has been killed."""
        held_back = max(1, len(self._lines) // 10) if self._killed is None else 0
        for process in self._processes:
            batch: list[tuple[int, str, bool]] = []
            while process.ready and len(process.in_flight) < WINDOW and len(self._queue) > held_back:
                number, text, again = self._queue.popleft()
                process.in_flight[number] = text
                batch.append((number, text, again))
            if batch:
                process.say({"lines": batch})

    async def _listen(self, process: Process) -> None:
        async for message in process.messages():
            if message.get("ready"):
                process.ready, process.note = True, ""
            if report := message.get("report"):
                process.status, process.newest_term = report["status"], tuple(report["newest_term"])
                process.done_total += len(report["done"])
                for number in report["done"]:
                    process.in_flight.pop(number, None)
                    self._done.add(number)
            process.finished = message.get("finished", process.finished)
            self._changed.set()
        if not process.is_killed:
            raise Failed(f"node {process.number} ended by itself; its log is {process.log}")

    def _half_way(self) -> bool:
        return len(self._done) >= len(self._lines) // 2 and self._leader() is not None

    def _leader(self) -> Process | None:
        leaders = [process for process in self._processes if process.status.get("role") == "leader"]
        return max(leaders, key=lambda process: int(process.status["term"]), default=None)

    async def _kill_the_leader(self) -> Process:
        leader = self._leader()
        assert leader is not None
        self._killed, self._killed_term = leader, int(leader.status["term"])
        self._killed_at = time.monotonic()
        await leader.kill()
        # No one knows which of these are in the log, so whoever proposes them again has to say so.
        self._queue.extendleft((number, text, True) for number, text in leader.in_flight.items())
        leader.in_flight.clear()
        return leader

    def _failed_over(self) -> bool:
        times = [
            at
            for process in self._processes
            for term, at in [process.newest_term]
            if term > self._killed_term and at > self._killed_at
        ]
        if times:
            self.failover_ms = (min(times) - self._killed_at) * 1000
        return bool(times)

    def verdict(self) -> str:
        """Return the last line, or raise Failed."""
        words = collections.Counter(word for line in self._lines for word in line.split())
        expected = digest(describe(len(self._lines), words))
        found = [process.finished["digest"] for process in self._processes if process.finished]
        if found != [expected] * len(self._processes):
            raise Failed(f"the replicas do not hold what the input says: expected {expected}, found {', '.join(found)}")
        status = [process.finished["status"] for process in self._processes if process.finished]
        proposed_again = sum(one["reproposals"] for one in status) + sum(p.reproposals_before for p in self._processes)
        skipped = max(one["duplicates_skipped"] for one in status)
        return (
            f"agreed: {len(found)} replicas, {len(self._lines)} commands, digest {expected}, "
            f"failover {self.failover_ms:.0f} ms, re-proposed {proposed_again}, duplicates skipped {skipped}"
        )


class Table:
    """Shows the processes, redrawn in place on a terminal and once a second elsewhere."""

    HEAD = f"{'node':>4} {'role':<14}{'term':>5}{'commit':>9}{'applied':>9}{'proposals/s':>13}  "

    def __init__(self, processes: list[Process]) -> None:
        self._processes = processes
        self._in_place = sys.stdout.isatty()
        self._interval_s = REFRESH_S if self._in_place else 1.0
        self._drawn = 0
        self._before = [0] * len(processes)
        self._rates = [0.0] * len(processes)
        self._drawn_at = time.monotonic()

    async def refresh(self, demo: Demo) -> None:
        """Draw until cancelled, and once more."""
        try:
            while True:
                self._draw(demo.progress)
                await asyncio.sleep(self._interval_s)
        finally:
            self._draw(demo.progress)

    def _draw(self, progress: str) -> None:
        now = time.monotonic()
        elapsed = now - self._drawn_at
        if elapsed >= self._interval_s / 2:  # the last table may follow the one before at once
            totals = [process.done_total for process in self._processes]
            self._rates = [(total - before) / elapsed for total, before in zip(totals, self._before, strict=True)]
            self._before, self._drawn_at = totals, now
        rows = [self.HEAD]
        for process, rate in zip(self._processes, self._rates, strict=True):
            status = process.status
            rows.append(
                f"{process.number:>4} {status.get('role', '-'):<14}{status.get('term', '-'):>5}"
                f"{status.get('commit', '-'):>9}{status.get('python_applied', '-'):>9}{rate:>13,.0f}  {process.note}"
            )
        rows.append(progress)
        if self._in_place and self._drawn:
            sys.stdout.write(f"\x1b[{self._drawn}A")
        sys.stdout.write("".join(f"{row}\x1b[K\n" if self._in_place else f"{row}\n" for row in rows))
        sys.stdout.flush()
        self._drawn = len(rows)


@contextlib.contextmanager
def reserved_addresses(count: int) -> Iterator[dict[int, str]]:
    """Let the system choose ports and keep them from anyone who does not ask for them by number.

    A socket that is bound but never listens does not stand in the way of one that does (SO_REUSEADDR), and the port
    is not given out to others while a node is down.
    """
    with contextlib.ExitStack() as stack:
        members: dict[int, str] = {}
        for number in range(1, count + 1):
            reserved = stack.enter_context(socket.socket())
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind(("127.0.0.1", 0))
            members[number] = f"127.0.0.1:{reserved.getsockname()[1]}"
        yield members


def read_lines(source: str | None) -> list[str]:
    """Return the lines of a file, of standard input ("-"), or of the demo's own text, repeated."""
    if source is None:
        lines = TEXT.read_text(encoding="utf-8").splitlines()
        return lines * -(-COMMANDS_MIN // len(lines))
    try:
        raw = sys.stdin.buffer.read() if source == "-" else pathlib.Path(source).read_bytes()
    except OSError as error:
        raise Failed(f"--input {source} cannot be read ({error.strerror}): give a text file, or -") from error
    lines = raw.decode("utf-8", "replace").splitlines()
    if not lines:
        raise Failed("the input has no lines, so there is nothing to agree on: give a text with at least one")
    for number, line in enumerate(lines, start=1):
        if len(line.encode()) > LINE_BYTES_MAX:
            raise Failed(
                f"line {number} of the input is longer than {LINE_BYTES_MAX} bytes: give a text with shorter lines"
            )
    return lines


async def play(lines: list[str], folder: pathlib.Path, out: pathlib.Path | None) -> str:
    """Run the demo in `folder`; return its last line."""
    with reserved_addresses(3) as members:
        processes = [Process(number, members, folder) for number in members]
        demo = Demo(lines, processes, out)
        showing = asyncio.create_task(Table(processes).refresh(demo))
        try:
            for process in processes:
                await process.start()
            await demo.run()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            showing.cancel()
            await asyncio.gather(showing, *(process.stop() for process in processes), return_exceptions=True)
        return demo.verdict()


def main() -> int:
    """Run the demo; return the exit status."""
    parser = argparse.ArgumentParser(description="Three replicas count words while their leader is killed.")
    parser.add_argument("--input", metavar="FILE", help="each line becomes a command; - reads standard input")
    parser.add_argument("--out", metavar="DIR", type=pathlib.Path, help="write each replica's state into DIR")
    options = parser.parse_args()
    try:
        lines = read_lines(options.input)
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
        ROOT.mkdir(exist_ok=True)
        folder = pathlib.Path(tempfile.mkdtemp(dir=ROOT))  # left behind by a failure, for its logs
        try:
            last = asyncio.run(play(lines, folder, options.out))
        except KeyboardInterrupt:
            shutil.rmtree(folder)
            raise
    except (Failed, OSError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    shutil.rmtree(folder)
    print(last)
    return 0


if __name__ == "__main__":
    sys.exit(main())
