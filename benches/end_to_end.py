"""Three durable processes on loopback: proposals/s in the leader's process, and failover times.

make bench ARGS="--seconds 3 --failovers 5"
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))

from demo import reserved_addresses  # noqa: E402

PATIENCE_S = 60


class Process:
    """One replica's process and the messages it sent."""

    def __init__(self, number: int, members: dict[int, str], folder: pathlib.Path) -> None:
        self.number = number
        self.said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.leader: int | None = None
        self._arguments = [str(number), json.dumps(members), str(folder / str(number))]
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(HERE / "bench_node.py"),
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._listening = asyncio.create_task(self._listen(self._process))
        await self.expect("ready")

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            message = json.loads(line)
            if "leader" in message:
                self.leader = message["leader"]
            else:
                self.said.put_nowait(message)

    async def expect(self, key: str) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            while key not in (message := await self.said.get()):
                pass
            return message

    def order(self, **message: Any) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def kill(self) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


async def leader_of(processes: list[Process]) -> Process:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            known = {process.leader for process in processes}
            if len(known) == 1 and (leader := known.pop()) is not None:
                return next(process for process in processes if process.number == leader)
            await asyncio.sleep(0.01)


async def throughput(processes: list[Process], seconds: float) -> None:
    print(f"{'proposed on':<14}{'in flight':>10}{'proposals/s':>13}{'p50 ms':>9}{'p99 ms':>9}")
    leader = await leader_of(processes)
    follower = next(process for process in processes if process is not leader)
    for where, process in (("the leader", leader), ("a follower", follower)):
        for in_flight in (1, 64, 256, 1024):
            process.order(load=in_flight, seconds=seconds)
            found = await process.expect("rate")
            print(
                f"{where:<14}{in_flight:>10}{found['rate']:>13,.0f}{found['p50_ms']:>9.2f}{found['p99_ms']:>9.2f}",
                flush=True,
            )


async def failover(processes: list[Process]) -> float:
    """Kill the leader; return the milliseconds until a proposal of another node is committed in a new term."""
    leader = await leader_of(processes)
    others = [process for process in processes if process is not leader]
    others[0].order(steady=True)
    before = await others[0].expect("done_at")
    killed_at = time.monotonic()
    await leader.kill()
    while (after := await others[0].expect("done_at"))["term"] <= before["term"]:
        pass
    return float((after["done_at"] - killed_at) * 1000)


async def session(folder: pathlib.Path, work: Any) -> Any:
    """Run `work` on three fresh processes."""
    with reserved_addresses(3) as members:
        processes = [Process(number, members, folder) for number in members]
        try:
            await asyncio.gather(*(process.start() for process in processes))
            return await work(processes)
        finally:
            await asyncio.gather(*(process.kill() for process in processes), return_exceptions=True)


async def main(seconds: float, failovers: int) -> None:
    with tempfile.TemporaryDirectory(dir=pathlib.Path.cwd(), prefix=".bench-") as root:
        await session(pathlib.Path(root) / "throughput", lambda processes: throughput(processes, seconds))
        times = [await session(pathlib.Path(root) / f"failover-{turn}", failover) for turn in range(failovers)]
    if times:
        print(
            f"failover, kill -9 of the leader to the next committed proposal, {len(times)} times: "
            f"median {statistics.median(times):,.0f} ms, {min(times):,.0f} to {max(times):,.0f} ms"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each throughput measurement")
    parser.add_argument("--failovers", type=int, default=5, help="how many leaders to kill")
    options = parser.parse_args()
    asyncio.run(main(options.seconds, options.failovers))
