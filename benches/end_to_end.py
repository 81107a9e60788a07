"""From `await` to result: the bare bridge, one node, three processes; failover, and an idle node (`make bench`).

make bench ARGS="--rounds 3 --seconds 3 --failovers 5"
"""

from __future__ import annotations

import argparse
import asyncio
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

from child import Child, Usage, agreed_leader
from contenders import BARE_BRIDGE, DISK, PLAIN_FUTURES, aioraft, aioraft_nodes, one_node
from load import Load
from report import RESULTS, Cell, load_tables, machine, medians, table, write_json
from rounds import Plan, in_turns

NAME = "end-to-end"
BARE = BARE_BRIDGE.name
MIB = 1 << 20
SETTLE_S = 2.0


def plans(seconds: float, in_flights: Sequence[int]) -> list[Plan]:
    """Small values from one process and from three, then large ones beside as many writers of the bare disk."""

    def load(in_flight: int, what: str = "propose", value_bytes: int = 64) -> Load:
        return Load(in_flight=in_flight, value_bytes=value_bytes, seconds=seconds, what=what)

    small = [load(in_flight) for in_flight in in_flights]
    more = [load(1, "propose_many"), load(4, "propose_many"), load(256, "read")]
    large = [load(in_flight, value_bytes=MIB) for in_flight in (3, 16)]
    return [
        [
            (PLAIN_FUTURES, small),
            (BARE_BRIDGE, small),
            (one_node(durable=False), small),
            (one_node(durable=True), small),
            (aioraft(), [*small, *more]),
            (aioraft(on_follower=True), [*small, *more]),
            (DISK, [load(1)]),
        ],
        [(aioraft(), large), (DISK, [load(3, value_bytes=MIB)])],
    ]


async def failover(folder: pathlib.Path) -> float:
    """Kill the leader; return the milliseconds until a proposal of another node is committed in a new term."""
    async with AsyncExitStack() as stack:
        nodes = await aioraft_nodes(stack, folder)
        leader = nodes.pop(await agreed_leader(nodes.values()))
        other = next(iter(nodes.values()))
        other.order(steady=True)
        before = await other.expect("first")
        killed_at = time.monotonic()
        await leader.kill()
        while (after := await other.expect("first"))["term"] <= before["term"]:
            pass
        return float(after["done_at"] - killed_at) * 1000


async def idle(folder: pathlib.Path, seconds: float) -> float:
    """The share of a core, in per cent, that a node of three takes while nothing is asked of it."""
    async with AsyncExitStack() as stack:
        nodes: dict[int, Child] = await aioraft_nodes(stack, folder)
        await agreed_leader(nodes.values())
        await asyncio.sleep(SETTLE_S)
        usage = Usage(nodes.values())
        await asyncio.sleep(seconds)
        return usage.cpu_s() / seconds / len(nodes) * 100


def lag_table(cells: Sequence[Cell]) -> str:
    """What an application's other tasks notice."""
    titles = ("", "in flight", "loop lag p99 ms", "callback p99.9 ms", "of that, CPU ms")
    ours = [cell for cell in cells if "lag_p99_ms" in cell.found and cell.load.value_bytes < MIB]
    shown = [cell for cell in ours if cell.load.what == "propose"]
    keys = ("lag_p99_ms", "drain_p999_ms", "drain_cpu_p999_ms")
    figures = [tuple(cell.found.get(key) for key in keys) for cell in shown]
    return table(titles, [(cell.who, cell.load.in_flight, *of) for cell, of in zip(shown, figures, strict=True)])


async def main(options: argparse.Namespace) -> None:
    about = machine()
    cells = await in_turns(plans(options.seconds, options.in_flight), options.rounds, options.dir)
    middle = medians(cells)
    print(load_tables(middle, BARE))
    print(f"How long the loop takes for a turn, and the bridge's callback in it:\n\n{lag_table(middle)}")
    with tempfile.TemporaryDirectory(dir=options.dir, prefix=".bench-") as root:
        times = [await failover(pathlib.Path(root) / str(number)) for number in range(options.failovers)]
        share = await idle(pathlib.Path(root) / "idle", options.idle_seconds)
    if times:
        print(
            f"Failover, kill -9 of the leader to the next committed proposal, {len(times)} times: "
            f"median {statistics.median(times):,.0f} ms, {min(times):,.0f} to {max(times):,.0f} ms."
        )
    print(f"An idle node of three takes {share:.2f} % of a core.")
    result = {"machine": about, "medians": middle, "rounds": cells, "failover_ms": times, "idle_percent": share}
    print(f"written: {write_json(NAME, result, options.out)}", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 64, 256, 1024])
    parser.add_argument("--failovers", type=int, default=5, help="how many leaders to kill")
    parser.add_argument("--idle-seconds", type=float, default=20.0, help="how long to look at idle nodes")
    parser.add_argument("--dir", default=".", help="on the disk to measure")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="where the JSON goes")
    asyncio.run(main(parser.parse_args()))
