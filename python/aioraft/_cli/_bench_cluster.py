"""The cluster that `aioraft bench` starts, measures and removes."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from typing import Any, TypeAlias, cast

from ._bench_config import load_config
from ._bench_report import BenchReport
from ._command import CommandError, Status
from ._latencies import Latencies

__all__ = ["measure"]

_Said: TypeAlias = asyncio.Queue[tuple[int, dict[str, Any] | str]]
"""What nodes say, by their ids; a string is the last word of one that has ended."""

_START_S = 60.0
_GRACE_S = 60.0
_DISK_S = 1.0
_LAST_WORDS = 500


def measure(arguments: argparse.Namespace) -> BenchReport:
    """Start it, put it under load, and end it. Raises CommandError."""
    load_config(arguments.config)  # a mistake is said once, and not by every node
    # The folder and the processes go before this one does.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(dir=arguments.dir, prefix=".aioraft-bench-") as folder:
            disk = _fdatasync_ms(pathlib.Path(folder) / "disk", arguments.value_bytes)
            found = asyncio.run(_measure(arguments, pathlib.Path(folder)))
    except OSError as error:
        raise CommandError(f"{error}: give --dir a folder that can be written to", Status.UNREADABLE) from error
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
        raise
    finally:
        signal.signal(signal.SIGINT, previous)
    return {
        "nodes": arguments.nodes,
        "in_flight": arguments.in_flight,
        "value_bytes": arguments.value_bytes,
        "seconds": arguments.seconds,
        "proposals_per_s": found["proposals"] / arguments.seconds,
        "proposals": found["proposals"],
        "latency_ms": found["latency_ms"],
        "histogram": [(bound, count) for bound, count in found["histogram"]],
        "fdatasync_ms": disk,
    }


def _fdatasync_ms(path: pathlib.Path, value_bytes: int) -> dict[str, float]:
    latencies = Latencies()
    value = os.urandom(value_bytes)
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        end = time.perf_counter() + _DISK_S
        while (start := time.perf_counter()) < end:
            os.write(file, value)
            os.fdatasync(file)
            latencies.add(time.perf_counter() - start)
    finally:
        os.close(file)
    return latencies.percentiles_ms(50, 99)


async def _measure(arguments: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    said: _Said = asyncio.Queue()
    async with contextlib.AsyncExitStack() as stack:
        members = stack.enter_context(_reserved_addresses(arguments.nodes))
        nodes = {number: _Process(number, members, folder, arguments.config, said) for number in members}
        for node in nodes.values():
            await stack.enter_async_context(node)
        async with _deadline(_START_S, "the nodes did not agree on a leader"):
            leader = nodes[await _agreed_leader(len(nodes), said)]
        leader.order(in_flight=arguments.in_flight, value_bytes=arguments.value_bytes, seconds=arguments.seconds)
        async with _deadline(arguments.seconds + _GRACE_S, "the load did not end"):
            found = await _found(said)
    if not found["proposals"]:
        raise CommandError("no proposal was answered in this time: give it more --seconds", Status.LATE)
    return found


async def _agreed_leader(nodes: int, said: _Said) -> int:
    """Wait until so many nodes name the same one."""
    named: dict[int, int | None] = {}
    while len(named) < nodes or len(set(named.values())) > 1 or None in named.values():
        number, message = await said.get()
        named[number] = _heard(number, message)["leader"]
    return next(leader for leader in named.values() if leader is not None)


async def _found(said: _Said) -> dict[str, Any]:
    """Wait for what the load has come to; says on standard error how it goes on."""
    before = 0
    while True:
        number, heard = await said.get()
        message = _heard(number, heard)
        if "answered" in message:
            sys.stderr.write(f"{message['answered'] - before:,} proposals answered in this second\n")
            before = message["answered"]
        elif "proposals" in message:
            return message


def _heard(number: int, message: dict[str, Any] | str) -> dict[str, Any]:
    if isinstance(message, str):
        raise CommandError(f"node {number} ended: {message}", Status.REFUSED)
    return message


@contextlib.asynccontextmanager
async def _deadline(seconds: float, what: str) -> AsyncGenerator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise CommandError(f"{what} within {seconds:g} s: is this machine busy, or its disk?", Status.LATE) from None


class _Process:
    """A node's process, and a task that passes on what it says."""

    def __init__(
        self, number: int, members: dict[int, str], folder: pathlib.Path, config: str | None, said: _Said
    ) -> None:
        self._number = number
        self._log = folder / f"{number}.log"
        self._given = {"id": number, "members": members, "data_dir": str(folder / str(number)), "config": config}
        self._said = said
        self._process: asyncio.subprocess.Process
        self._listening: asyncio.Task[None]

    async def __aenter__(self) -> _Process:
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "aioraft._cli._bench_node",
                json.dumps(self._given),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the parent, which ends them
            )
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._listening

    def order(self, **message: Any) -> None:
        """Tell it what to do."""
        stdin = cast("asyncio.StreamWriter", self._process.stdin)
        stdin.write(json.dumps(message).encode() + b"\n")

    async def _listen(self) -> None:
        async for line in cast("asyncio.StreamReader", self._process.stdout):
            self._said.put_nowait((self._number, json.loads(line)))
        words = self._log.read_text(errors="replace").strip()[-_LAST_WORDS:]
        self._said.put_nowait((self._number, words or "it did not say why"))


@contextlib.contextmanager
def _reserved_addresses(count: int) -> Generator[dict[int, str]]:
    """Ports that the system chooses, and gives to nobody else who lets it choose."""
    with contextlib.ExitStack() as stack:
        members: dict[int, str] = {}
        for number in range(1, count + 1):
            reserved = stack.enter_context(socket.socket())
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind(("127.0.0.1", 0))
            members[number] = f"127.0.0.1:{reserved.getsockname()[1]}"
        yield members
