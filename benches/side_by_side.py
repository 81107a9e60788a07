"""aioraft beside what a user would pick instead: three processes each, on the same disk, in turns (`make bench-peers`).

What is printed are the medians of the rounds. The disk itself is measured in every round, too.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import pathlib
import shutil
import sys

import chart
from contenders import DISK, aioraft, etcd, given, pysyncobj, without_python
from load import Load
from report import PAGE, README, RESULTS, load_tables, machine, medians, publish, write_json
from rounds import Plan, in_turns

NAME = "side-by-side"
OURS = aioraft()
PEERS = (
    aioraft(on_follower=True),
    without_python(),
    etcd(connections=1),
    etcd(connections=8),
    pysyncobj(batch=True),
    pysyncobj(batch=False),
)
NEVER_THERE = {"raftify": "it comes as source code only, and its build is no part of this"}
READS_IN_FLIGHT = 256


def plan(options: argparse.Namespace, value_bytes: int) -> Plan:
    """Who is put under which loads, for values of one size."""

    def load(in_flight: int, what: str = "propose") -> Load:
        return Load(in_flight=in_flight, value_bytes=value_bytes, seconds=options.seconds, what=what)

    proposals = [load(in_flight) for in_flight in options.in_flight]
    reads = [load(READS_IN_FLIGHT, "read")] if value_bytes == options.value_bytes[0] else []
    contenders = [OURS, *PEERS, *(given(text) for text in options.also)]
    there = [one for one in contenders if not one.missing() and any(part in one.name for part in options.only)]
    wanted = [(one, [*proposals, *reads] if "read" in one.kinds else proposals) for one in there]
    return [(DISK, [load(1)]), *wanted]


async def main(options: argparse.Namespace) -> None:
    left_out = {one.name: why for one in PEERS if (why := one.missing())} | NEVER_THERE
    for name, why in left_out.items():
        print(f"{name} is left out: {why}", file=sys.stderr)
    about = machine()
    plans = [plan(options, value_bytes) for value_bytes in options.value_bytes]
    cells = await in_turns(plans, options.rounds, options.dir)
    middle = medians(cells)
    means = "".join(f"- {one.name}: an answer means {one.answer_means}.\n" for one, _ in plans[0])
    missing = "".join(f"- {name} is left out: {why}.\n" for name, why in left_out.items())
    text = f"{load_tables(middle, OURS.name)}\n{means}{missing}"
    print(text)
    given_options = {key: getattr(options, key) for key in ("rounds", "seconds", "in_flight", "value_bytes")}
    result = {"machine": about, "options": given_options, "left_out": left_out, "medians": middle, "rounds": cells}
    path = write_json(NAME, result, options.out)
    drawing = path.with_suffix(".svg")
    drawing.write_text(chart.side_by_side([dataclasses.asdict(cell) for cell in middle]))
    print(f"written: {path}, {drawing}", file=sys.stderr)
    if options.publish:
        on = f"{about['cpu']}, {about['cores']} cores, Linux {about['kernel']}, Python {about['python']}"
        on += "".join(f", {name} {version}" for name, version in about["versions"].items() if version)
        publish(NAME, f"Medians of {options.rounds} rounds of {options.seconds:g} s; {on}.\n\n{text}", PAGE)
        shutil.copy(drawing, PAGE.with_name(drawing.name))
        publish(NAME, f"![Proposals a second, side by side](docs/{drawing.name})\n", README)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 64, 256, 1024])
    parser.add_argument("--value-bytes", type=int, nargs="+", default=[64, 4096])
    parser.add_argument("--only", nargs="+", default=[""], metavar="PART", help="who has this in their name")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=COMMAND", help="another client to measure")
    parser.add_argument("--dir", default=".", help="on the disk to measure")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="where the JSON and the chart go")
    parser.add_argument("--publish", action="store_true", help="put tables and chart into docs/ and README, too")
    asyncio.run(main(parser.parse_args()))
