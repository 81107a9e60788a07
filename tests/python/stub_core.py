"""A core that a test moves by hand, for what a real cluster shows only by chance: which await is pending when."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import aioraft

if TYPE_CHECKING:
    from aioraft._core import Core


class StubCore:
    """Holds what the facade reads; each wait is resolved by the methods below."""

    def __init__(self) -> None:
        self.stopped: BaseException | None = None
        self.applied = 0
        self.log: list[aioraft.Entry] = []
        self.read_gate: asyncio.Future[None] | None = None
        self.leadership: tuple[int, int, int | None, int | None] = (1, 0, None, None)
        self.full = False
        self.fills_up = False  # at each propose_many
        self.proposed: list[bytes] = []
        self._waits: list[asyncio.Future[None]] = []

    def as_core(self) -> Core:
        return cast("Core", self)

    # What tests do

    def apply(self, *datas: bytes) -> None:
        for data in datas:
            self.applied += 1
            self.log.append(aioraft.Entry(self.applied, 1, data))
        self._wake()

    def lead(self, term: int, leader: int | None, *, leading: bool) -> None:
        self.leadership = (self.leadership[0] + 1, term, leader, term if leading else None)
        self._wake()

    def make_room(self) -> None:
        self.full = False
        self._wake()

    def end(self, error: BaseException) -> None:
        """Close, or stop with a FatalError."""
        self.stopped = error
        self._wake()

    # What the facade calls

    def wait_applied(self, beyond: int) -> asyncio.Future[None]:
        return self._wait()

    def wait_leadership(self, version: int) -> asyncio.Future[None]:
        return self._wait()

    def wait_room(self) -> asyncio.Future[None]:
        return self._wait()

    async def read_applied(self, after: int, max_bytes: int) -> tuple[list[aioraft.Entry], int]:
        if self.read_gate is not None:
            await self.read_gate
        return self.log[after:], self.applied

    def propose(self, data: bytes, timeout: float | None) -> asyncio.Future[int]:
        self.proposed.append(data)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        future.set_result(len(self.proposed))
        return future

    def propose_many(self, items: list[bytes], timeout: float | None) -> asyncio.Future[list[Any]]:
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        results: list[Any] = []
        for item in items:
            self.proposed.append(item)
            failed = item.startswith(b"!")
            results.append(aioraft.NotCommittedError(f"{item!r}") if failed else len(self.proposed))
        future.set_result(results)
        self.full = self.fills_up
        return future

    def _wait(self) -> asyncio.Future[None]:
        if self.stopped is not None:
            raise self.stopped
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waits.append(future)
        return future

    def _wake(self) -> None:
        waits, self._waits = self._waits, []
        for wait in waits:
            if wait.done():
                continue
            if self.stopped is None:
                wait.set_result(None)
            else:
                wait.set_exception(self.stopped)


async def settle() -> None:
    """Let every task run until it waits for something that only the test can bring."""
    for _ in range(20):
        await asyncio.sleep(0)
