"""One replica of aioraft, measured from its own process.

    python bench_node.py NUMBER MEMBERS DATA_DIR      # DATA_DIR "" for memory

Standard input, a line of JSON each: `{"load": {...}}` ([load.py](load.py); what: propose, propose_many, read) and
`{"steady": true}` (propose one after the other until the end).
Standard output: `{"leader": ..., "term": ...}` whenever that changes, `{"ready": true}`, `{"found": {...}}`, and with
`steady` `{"first": {"term": ..., "done_at": monotonic}}` for the first proposal of each term.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import aioraft
from load import Call, carry_out, orders, say

MANY = 256


class Terms(aioraft.StateMachine[int]):
    """Does nothing but say in which term an entry was committed."""

    def apply(self, entry: aioraft.Entry) -> int:
        return entry.term


async def steady(node: aioraft.Node[int]) -> None:
    newest = 0
    while True:
        term = await node.propose(bytes(64), timeout=None)
        if term > newest:
            newest = term
            say({"first": {"term": term, "done_at": time.monotonic()}})


async def report_leader(node: aioraft.Node[int]) -> None:
    async for newest in node.leadership():
        say({"leader": newest.leader, "term": newest.term})


async def main(number: int, members: dict[int, str], data_dir: str | None) -> None:
    async with (
        aioraft.Node(id=number, members=members, data_dir=data_dir, state_machine=Terms()) as node,
        asyncio.TaskGroup() as tasks,
    ):
        calls: dict[str, list[Call]] = {
            "propose": [node.propose],
            "propose_many": [lambda value: node.propose_many([value] * MANY)],
            "read": [lambda _: node.read_barrier()],
        }
        background = [tasks.create_task(report_leader(node))]
        await node.ready()
        say({"ready": True})
        async for order in orders():
            if "load" in order:
                await carry_out(order, calls)
            else:
                background.append(tasks.create_task(steady(node)))
        for task in background:
            task.cancel()


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    asyncio.run(
        main(int(sys.argv[1]), {int(member): address for member, address in given.items()}, sys.argv[3] or None)
    )
