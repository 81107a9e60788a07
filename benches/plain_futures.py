"""Awaiting futures of asyncio's own, without Rust: what the loop does for as many tasks.

`python plain_futures.py FOLDER`. Orders and answers as of bench_node.py.
"""

from __future__ import annotations

import asyncio

from load import obey, say


def propose(value: bytes) -> asyncio.Future[bytes]:
    """A future whose result comes with the loop's next turn."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bytes] = loop.create_future()
    loop.call_soon(future.set_result, value)
    return future


async def main() -> None:
    say({"ready": True})
    await obey({"propose": [propose]})


if __name__ == "__main__":
    asyncio.run(main())
