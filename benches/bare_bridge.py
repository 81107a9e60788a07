"""The bridge without Raft: an echo behind the same inbox and completion queue, which gives the ceiling of one process.

`python bare_bridge.py FOLDER`. Orders and answers as of bench_node.py.
"""

from __future__ import annotations

import asyncio

import aioraft
from aioraft._core import Core
from bench_node import Terms
from load import obey, say


async def main() -> None:
    core = Core(
        loop=asyncio.get_running_loop(),
        node_id=1,
        members={1: "127.0.0.1:0"},
        cluster="bench",
        data_dir=None,
        listen="127.0.0.1:0",
        advertise=None,
        config=aioraft.Config(),
        state_machine=Terms(),
        echo=True,
    )
    await core.start()
    while core.leadership[2] is None:
        await core.wait_leadership(core.leadership[0])
    say({"ready": True})
    await obey({"propose": [lambda value: core.propose(value, None)]})
    await core.close(0.0)


if __name__ == "__main__":
    asyncio.run(main())
