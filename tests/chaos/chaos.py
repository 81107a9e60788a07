"""Real processes on real disks, behind a network that fails: do their clients' histories stay linearizable?

    make chaos SECONDS=600 NODES=3 SEED=...

The judge is that of the simulated world (`src/sim/history.rs`). Ends with status 1 if it objects, or if it cannot
decide too often; if the cluster does not recover, or its replicas differ; if a call was lost, applied twice, or applied
though it was refused; if a call did not end, or a process left a traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator
from typing import Any

TESTS = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "python"), str(TESTS / "soak")]

from disks import Disks, build_shim, preload  # noqa: E402
from faults import CLIENTS, Cluster, Faults  # noqa: E402
from network import Network  # noqa: E402
from processes import reserved_addresses  # noqa: E402
from schedule import Fault, draw, draw_changes  # noqa: E402
from verdict import agree, check_calls  # noqa: E402

ELECTION_TIMEOUT_S = 0.5
RECOVERY_S = 30.0
ANSWERED_PER_S_MIN = 5
"""By all clients together: a run in which nothing succeeds shows nothing."""
SETTINGS = {
    "election_timeout": ELECTION_TIMEOUT_S,
    "heartbeat_interval": ELECTION_TIMEOUT_S / 10,
    "entry_cache_bytes": 64 * 1024,  # so that who lags behind is sent what is on the disk
    "max_unapplied_bytes": 64 * 1024,
    "snapshot_entries": 300,  # one in a few seconds, and so short a trail that who was away is sent one
    "snapshot_trail": 20,
}
JUDGE = TESTS.parent / "target/release/examples/sim"


class Run:
    """One run."""

    def __init__(self, options: argparse.Namespace, folder: pathlib.Path) -> None:
        self._options = options
        self._folder = folder
        self._histories = folder / "history"
        self._histories.mkdir()
        self._problems: list[str] = []

    async def run(self) -> list[str]:
        """Return what is wrong."""
        options = self._options
        schedule = draw(options.seed, options.seconds, options.nodes, ELECTION_TIMEOUT_S)
        changes = [] if options.static else draw_changes(options.seed, options.seconds, options.nodes)
        schedule = sorted(schedule + changes, key=lambda fault: fault.at_s)
        (self._folder / "schedule").write_text("".join(f"{fault}\n" for fault in schedule))
        async with self._cluster(newcomers=len(changes)) as (cluster, faults):
            try:
                await self._disturb(cluster, faults, schedule)
                reports = await self._recover(cluster)
            except* AssertionError as group:
                self._problems += _sentences(group)
            else:
                self._count(cluster, faults, reports[0])
            self._problems += [fault for process in cluster.all + cluster.gone for fault in process.faults()]
        self._judge()
        return self._problems

    @contextlib.asynccontextmanager
    async def _cluster(self, newcomers: int) -> AsyncIterator[tuple[Cluster, Faults]]:
        nodes = self._options.nodes
        with reserved_addresses(nodes + newcomers) as listening:
            network = Network(listening, random.Random(f"network {self._options.seed}"))
            doors = await network.start()
            cluster = Cluster(
                self._folder,
                doors,
                nodes,
                self._options.seed,
                SETTINGS | {"listen": listening},
                histories=self._histories,
                breaks=self._options.breaks,
            )
            try:
                await cluster.begin(cluster.all)
                await cluster.ask(cluster.all, "ready")
                yield cluster, Faults(cluster, network, Disks(self._folder))
            finally:
                running = [process for process in cluster.all + cluster.gone + cluster.coming if process.is_running]
                for process in running:
                    process.send_signal(signal.SIGCONT)
                    process.send_kill()
                await asyncio.gather(*(process.ended() for process in running))
                await network.close()

    async def _disturb(self, cluster: Cluster, faults: Faults, schedule: list[Fault]) -> None:
        """Bring all faults, and print a line a minute."""
        began = time.monotonic()
        bringing = asyncio.create_task(faults.bring(schedule))
        next_line_s = 60.0
        try:
            while not bringing.done():
                await asyncio.wait([bringing], timeout=1.0)
                for process in cluster.running:
                    process.check()
                if time.monotonic() - began > next_line_s:
                    say(f"chaos: {next_line_s:.0f} s, {_listed(faults.happened)}")
                    next_line_s += 60.0
            await bringing
        finally:
            bringing.cancel()
            await asyncio.wait([bringing])

    async def _recover(self, cluster: Cluster) -> list[dict[str, Any]]:
        """All faults are over: every node answers, within a deadline, and all come to the same state."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(RECOVERY_S):
                await cluster.ask(cluster.all, "ready")
                await cluster.ask(cluster.all, "probe")
                say(f"chaos: recovered {time.monotonic() - began:.1f} s after the last fault")
                await cluster.ask(cluster.all, "stop")
                while not agree(reports := await cluster.ask(cluster.all, "report")):
                    pass  # what was under way when its caller left is still being applied
        except TimeoutError:
            raise AssertionError(f"the cluster has not recovered {RECOVERY_S:g} s after the last fault") from None
        return reports

    def _count(self, cluster: Cluster, faults: Faults, report: dict[str, Any]) -> None:
        ends, problems = check_calls(self._histories, report, cluster.killed)
        self._problems += problems
        if report["votes"] != {str(process.number): True for process in cluster.all}:
            self._problems.append(f"the members are others than they should be: {report['votes']}")
        if ends["ok"] < ANSWERED_PER_S_MIN * self._options.seconds:
            self._problems.append(f"only {ends['ok']} calls were answered: this run shows nothing")
        term = max(newest.term for process in cluster.all for newest in process.leaderships)
        say(
            f"chaos: {self._options.nodes} nodes with {CLIENTS} clients each, {self._options.seconds:g} s, "
            f"seed {self._options.seed}: {ends.total():,} calls ({_listed(ends)}), "
            f"{faults.happened.total()} faults ({_listed(faults.happened)}), "
            f"{sum(process.starts for process in cluster.all + cluster.gone)} starts, "
            f"term {term}, log through {report['index']:,}"
        )

    def _judge(self) -> None:
        judged = subprocess.run(
            [self._options.judge, "judge", *sorted(map(str, self._histories.iterdir()))],
            stdout=subprocess.PIPE,
            text=True,
        )
        say(judged.stdout.rstrip())
        if judged.returncode != 0:
            self._problems.append("the judge does not accept the history")


def _sentences(error: BaseException) -> list[str]:
    if isinstance(error, BaseExceptionGroup):
        return [sentence for inner in error.exceptions for sentence in _sentences(inner)]
    return [str(error)]


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items()))


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=600.0, help="of faults")
    parser.add_argument("--nodes", type=int, default=3, choices=(3, 5, 7))
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(10**9)))
    parser.add_argument("--static", action="store_true", help="the members stay what they are")
    parser.add_argument("--judge", type=pathlib.Path, default=JUDGE, help="the example `sim`, built")
    parser.add_argument(
        "--break",
        dest="breaks",
        default="",
        choices=["stale-reads", "retries"],
        help="clients that read without a barrier, or propose again what may be applied: to see that it is found",
    )
    return parser.parse_args()


def main() -> int:
    options = parsed()
    if not options.judge.exists():
        say(f"there is no {options.judge}: build it first (`make chaos` does)")
        return 2
    again = f"make chaos SECONDS={options.seconds:g} NODES={options.nodes} SEED={options.seed}"
    say(f"chaos: {again}")
    folder = pathlib.Path(tempfile.mkdtemp(dir=pathlib.Path.cwd(), prefix=".chaos-"))
    os.environ |= preload(build_shim(folder), folder)
    try:
        problems = asyncio.run(Run(options, folder).run())
    except Exception:
        problems = [traceback.format_exc()]
    for problem in problems[:50]:
        say(f"chaos: {problem}")
    if problems:
        say(
            f"FAILED: {len(problems)} problems; logs, histories and the schedule of faults are in {folder}; again with: {again}"
        )
        return 1
    shutil.rmtree(folder)
    say("chaos: recovered, linearizable, replicas equal; nothing lost, nothing doubled, nothing refused and applied")
    return 0


if __name__ == "__main__":
    sys.exit(main())
