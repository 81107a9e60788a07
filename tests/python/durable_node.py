"""A node whose state machine is that of `examples/durable_sqlite.py`, to be killed: `python durable_node.py FOLDER START PORT`.

It credits accounts "START-0", "START-1" and so on with 1 each, so that a command that is applied twice shows as a balance
of 2. Each line that it prints is a JSON list: `["holds", position]`, `["applies", index]` for the first entry that it
applies, `["restores"]`, `["acknowledged", account]`.
"""

from __future__ import annotations

import asyncio
import json
import pathlib
import random
import sys

import aioraft
from durable_sqlite import Accounts

CONFIG = aioraft.Config(
    election_timeout=0.1, heartbeat_interval=0.01, snapshot_entries=100, snapshot_trail=10, propose_timeout=None
)


def say(*what: object) -> None:
    sys.stdout.write(f"{json.dumps(what)}\n")
    sys.stdout.flush()


class Watched(Accounts):
    has_applied = False

    def apply(self, entry: aioraft.Entry) -> int:
        if not self.has_applied:
            self.has_applied = True
            say("applies", entry.index)
        return super().apply(entry)

    def restore(self, data: bytes) -> None:
        super().restore(data)
        say("restores")


async def credit(node: aioraft.Node[int], account: str) -> None:
    balance = await node.propose(json.dumps([account, 1]).encode())
    say("acknowledged" if balance == 1 else "doubled", account)


async def main(folder: pathlib.Path, start: str, port: int) -> None:
    accounts = Watched(folder / "accounts.sqlite3")
    say("holds", accounts.durable_applied())
    node = aioraft.Node(
        id=1, members={1: f"127.0.0.1:{port}"}, data_dir=folder / "raft", state_machine=accounts, config=CONFIG
    )
    chance = random.Random(start)
    number = 0
    async with node:
        while True:
            batch = chance.randrange(1, 20)
            await asyncio.gather(*(credit(node, f"{start}-{number + item}") for item in range(batch)))
            number += batch
            if chance.random() < 0.05:
                await node.snapshot()


asyncio.run(main(pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
