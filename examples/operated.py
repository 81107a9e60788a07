"""A node to try the operator's commands on: a counter, which adds what is typed.

python examples/operated.py 1 1=127.0.0.1:7401 2=127.0.0.1:7402 3=127.0.0.1:7403    # and 2 and 3, in other terminals
python examples/operated.py 4 1=127.0.0.1:7401 4=127.0.0.1:7404                     # later: waits until it is added

docs/operations.md walks through what can be done with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

import aioraft


class Counter(aioraft.StateMachine[int]):
    """A command is a number in ASCII; its result is the sum so far."""

    def __init__(self) -> None:
        self.sum = 0

    def apply(self, entry: aioraft.Entry) -> int:
        self.sum += int(entry.data)
        return self.sum

    def snapshot(self) -> bytes:
        """Return the state as of the last `apply`."""
        return b"%d" % self.sum

    def restore(self, data: bytes) -> None:
        """Take the state of another replica, or of an earlier start."""
        self.sum = int(data)


async def add_lines(node: aioraft.Node[int]) -> None:
    """Add every line of standard input; its end ends nothing."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).strip():
        try:
            print("sum", await node.propose(b"%d" % int(line)), flush=True)
        except (ValueError, aioraft.RaftError) as error:
            print(f"not added: {error}", flush=True)


async def run(number: int, members: dict[int, str]) -> None:
    """Be node `number` until Ctrl-C, or until the cluster goes on without it."""
    node = aioraft.Node(id=number, members=members, cluster="demo", data_dir=f"data/{number}", state_machine=Counter())
    async with node:
        print(f"node {number} runs", flush=True)
        adding = asyncio.create_task(add_lines(node))
        ending = asyncio.create_task(node.wait_stopped())
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, ending.cancel)
        try:
            await ending
        except (aioraft.RemovedError, aioraft.SupersededError) as error:
            print(error, flush=True)
        finally:
            adding.cancel()


def main() -> None:
    """Read the arguments: this node's id, then every node's, with its address."""
    members = {int(number): address for number, _, address in (it.partition("=") for it in sys.argv[2:])}
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(run(int(sys.argv[1]), members))


if __name__ == "__main__":
    main()
