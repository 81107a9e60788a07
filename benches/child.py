"""The processes of a contender, and what they use."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any, Self

PATIENCE_S = 60
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Child:
    """A process that is given orders, and answers, in lines of JSON; or that just runs."""

    def __init__(self, *command: str, log: pathlib.Path) -> None:
        self.leader: int | None = None
        """Whom it last named, with a message `leader`."""
        self._command = command
        self._log = log
        self._said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "it was not started"
        return self._process

    async def __aenter__(self) -> Self:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log
            )
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    async def _listen(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            with contextlib.suppress(json.JSONDecodeError):  # etcd, for one, says other things
                message = json.loads(line)
                if "leader" in message:
                    self.leader = message["leader"]
                else:
                    self._said.put_nowait(message)
        self._said.put_nowait({"ended": True})

    def order(self, **message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")

    async def expect(self, key: str, patience_s: float = PATIENCE_S) -> Any:
        """Wait until it says something under this key."""
        try:
            async with asyncio.timeout(patience_s):
                while key not in (message := await self._said.get()):
                    if "ended" in message:
                        raise Silent(f"{self._command[:2]} ended; its last words: {self._last_words()}")
        except TimeoutError:
            raise Silent(f"no {key!r} in {patience_s:g} s; its last words: {self._last_words()}") from None
        return message[key]

    def _last_words(self) -> str:
        return self._log.read_text(errors="replace").strip()[-300:] or "none"


class Silent(Exception):
    """A process does not say what it should."""


async def agreed_leader(children: Iterable[Child]) -> int:
    """Wait until all name the same leader."""
    named: set[int | None] = set()
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                named = {child.leader for child in children}
                if len(named) == 1 and (leader := named.pop()) is not None:
                    return leader
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise Silent(f"after {PATIENCE_S} s they name different leaders, or none: {named}") from None


class Usage:
    """What processes use from now on."""

    def __init__(self, children: Iterable[Child]) -> None:
        self._folders = [pathlib.Path(f"/proc/{child.process.pid}") for child in children]
        for folder in self._folders:
            (folder / "clear_refs").write_text("5")  # the peak begins anew
        self._before_s = self._cpu_s()

    def cpu_s(self) -> float:
        """CPU time, of all together."""
        return self._cpu_s() - self._before_s

    def peak_bytes(self) -> int:
        """The largest resident memory of each, added up."""
        return self._status("VmHWM:")

    def resident_bytes(self) -> int:
        """The resident memory of all now."""
        return self._status("VmRSS:")

    def _status(self, name: str) -> int:
        lines = [line for folder in self._folders for line in (folder / "status").read_text().splitlines()]
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    def _cpu_s(self) -> float:
        fields = [(folder / "stat").read_text().rpartition(")")[2].split() for folder in self._folders]
        return sum(int(of[11]) + int(of[12]) for of in fields) / TICKS_PER_S
