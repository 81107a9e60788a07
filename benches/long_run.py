"""What only shows after a while: memory over millions of proposals, and how soon a long log is open and replayed.

    python benches/long_run.py                     # 5 million proposals, then a log of a million entries

The first is a cluster of three whose state machine has snapshots, so that the log is compacted; the second a single
node whose state machine has none, so that it is not.
"""

from __future__ import annotations

import argparse
import asyncio
import pathlib
import sys
import tempfile
import time
from contextlib import AsyncExitStack

import aioraft
from child import Usage, agreed_leader
from contenders import aioraft_nodes, reserved_addresses
from report import RESULTS, machine, table, write_json

STEPS = 10
IN_FLIGHT = 1024
BATCH = 10_000


class Counted(aioraft.StateMachine[None]):
    """Counts, and says when it has begun, and when it has come to a number."""

    def __init__(self, number: int) -> None:
        self.count = 0
        self.began_at = 0.0
        self.ended_at: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._number = number

    def apply(self, entry: aioraft.Entry) -> None:
        del entry
        self.began_at = self.began_at or time.perf_counter()
        self.count += 1
        if self.count == self._number:
            self.ended_at.set_result(time.perf_counter())


async def memory(proposals: int, folder: pathlib.Path) -> list[dict[str, float]]:
    """Resident memory of all three processes, each time that a tenth of the proposals is done."""
    found: list[dict[str, float]] = []
    async with AsyncExitStack() as stack:
        nodes = await aioraft_nodes(stack, folder, snapshots=True)
        leader = nodes[await agreed_leader(nodes.values())]
        for step in range(STEPS):
            usage = Usage(nodes.values())
            leader.order(repeat={"calls": proposals // STEPS, "in_flight": IN_FLIGHT})
            await leader.expect("repeated", patience_s=600)
            done = (step + 1) * (proposals // STEPS)
            found.append({"proposals": done, "resident_mib": usage.resident_bytes() / 2**20})
            print(f"{done:,} proposals, {found[-1]['resident_mib']:,.0f} MiB", file=sys.stderr)
    return found


async def reopening(entries: int, folder: pathlib.Path) -> dict[str, float]:
    """Seconds until a node with such a log is open, and what it replays in a second."""
    with reserved_addresses(1) as members:

        def node(machine: Counted) -> aioraft.Node[None]:
            return aioraft.Node(id=1, members=members, data_dir=folder, state_machine=machine)

        async with node(Counted(0)) as before:
            for _ in range(max(1, entries // BATCH)):
                await before.propose_many([bytes(64)] * BATCH)
        machine = Counted(max(1, entries // BATCH) * BATCH)
        start = time.perf_counter()
        async with node(machine):
            opened = time.perf_counter()
            took_s = await machine.ended_at - machine.began_at
    return {"entries": machine.count, "open_s": opened - start, "replayed_per_s": machine.count / took_s}


async def main(options: argparse.Namespace) -> None:
    about = machine()
    with tempfile.TemporaryDirectory(dir=options.dir, prefix=".bench-") as root:
        grown = await memory(options.proposals, pathlib.Path(root) / "memory")
        opened = await reopening(options.entries, pathlib.Path(root) / "reopening")
    rows = [(f"{step['proposals']:,}", step["resident_mib"]) for step in grown]
    print(table(("proposals", "MiB of three processes"), rows))
    print(
        f"A log of {options.entries:,} entries is open after {opened['open_s']:.2f} s, and "
        f"{opened['replayed_per_s']:,.0f} entries a second are replayed."
    )
    write_json("long-run", {"machine": about, "memory": grown, "reopening": opened}, options.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--proposals", type=int, default=5_000_000)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--dir", default=".", help="on the disk to measure")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="where the JSON goes")
    asyncio.run(main(parser.parse_args()))
