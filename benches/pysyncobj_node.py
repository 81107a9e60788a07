"""One replica of PySyncObj, measured from its own process: `python pysyncobj_node.py JOURNAL BATCH OWN OTHER OTHER`.

Its callbacks come on its own thread; they are handed to the asyncio loop in batches, the cheapest way to await them.
Orders and answers as of bench_node.py.
"""

from __future__ import annotations

import asyncio
import collections
import sys

from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated

from load import obey, say

PATIENCE_S = 30.0
LOOK_S = 0.2


class Replica(SyncObj):  # type: ignore[misc]  # it has no types
    """Does nothing with what it is given."""

    @replicated  # type: ignore[untyped-decorator]  # it has no types
    def take(self, value: bytes) -> None:
        del value


class Awaitables:
    """Futures of the running loop for calls that end on another thread."""

    def __init__(self, replica: Replica) -> None:
        self._loop = asyncio.get_running_loop()
        self._replica = replica
        self._ended: collections.deque[tuple[asyncio.Future[None], int]] = collections.deque()
        self._is_woken = False

    def propose(self, value: bytes) -> asyncio.Future[None]:
        future = self._loop.create_future()
        self._replica.take(value, callback=lambda _, reason: self._end(future, reason))
        return future

    def _end(self, future: asyncio.Future[None], reason: int) -> None:
        self._ended.append((future, reason))
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._is_woken = False
        while self._ended:
            future, reason = self._ended.popleft()
            if reason == FAIL_REASON.SUCCESS:
                future.set_result(None)
            else:
                future.set_exception(RuntimeError(f"PySyncObj's FAIL_REASON {reason}"))


async def report_leader(replica: Replica) -> None:
    said = None
    while True:
        if (leader := replica._getLeader()) != said:
            said = leader
            say({"leader": None if leader is None else int(str(leader).rsplit(":", 1)[1])})
        await asyncio.sleep(LOOK_S)


async def main(journal: str, use_batch: bool, own: str, others: list[str]) -> None:
    replica = Replica(own, others, SyncObjConf(journalFile=journal, appendEntriesUseBatch=use_batch))
    async with asyncio.timeout(PATIENCE_S):
        while not replica.isReady():  # noqa: ASYNC110  # its callback comes on its own thread
            await asyncio.sleep(LOOK_S)
    say({"ready": True})
    reporting = asyncio.create_task(report_leader(replica))
    await obey({"propose": [Awaitables(replica).propose]})
    reporting.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2] == "batch", sys.argv[3], sys.argv[4:]))
