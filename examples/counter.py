"""Three replicas that count together: run `python examples/counter.py 1`, and 2 and 3 in terminals of their own."""

import asyncio
import contextlib
import os
import sys

import aioraft

PORT = int(os.environ.get("PORT", "7400"))
MEMBERS = {number: f"127.0.0.1:{PORT + number}" for number in (1, 2, 3)}


class Counter(aioraft.StateMachine[int]):
    value = 0

    def apply(self, entry: aioraft.Entry) -> int:
        self.value += int(entry.data)
        return self.value

    def snapshot(self) -> bytes:
        return str(self.value).encode()

    def restore(self, data: bytes) -> None:
        self.value = int(data)


async def main(number: int) -> None:
    node = aioraft.Node(id=number, members=MEMBERS, data_dir=f"data/counter-{number}", state_machine=Counter())
    async with node:
        while True:  # the count goes on while two of the three run
            print(await node.propose(b"1", timeout=None), flush=True)
            await asyncio.sleep(1)


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main(int(sys.argv[1])))
