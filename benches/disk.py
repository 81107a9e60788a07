"""What the disk gives: append + fdatasync with nothing else round it; `python disk.py FOLDER`.

As many writers as a load has in flight, each with a file and a thread of its own. Orders and answers as of
bench_node.py.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import os
import pathlib
import sys
import time

from load import Load, found, orders, say


def append_and_fdatasync(folder: pathlib.Path, load: Load) -> dict[str, float]:
    """Append a value and fdatasync, over and over."""
    with concurrent.futures.ThreadPoolExecutor(load.in_flight) as threads:
        writers = [threads.submit(_append, folder / f"appended-{number}", load) for number in range(load.in_flight)]
        return found(itertools.chain(*(writer.result() for writer in writers)), load.seconds)


def _append(path: pathlib.Path, load: Load) -> list[float]:
    value = os.urandom(load.value_bytes)
    latencies_s = []
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        end = time.perf_counter() + load.seconds
        while (start := time.perf_counter()) < end:
            os.write(file, value)
            os.fdatasync(file)
            latencies_s.append(time.perf_counter() - start)
    finally:
        os.close(file)
        path.unlink()
    return latencies_s


async def main(folder: pathlib.Path) -> None:
    say({"ready": True})
    async for order in orders():
        say({"found": await asyncio.to_thread(append_and_fdatasync, folder, Load(**order["load"]))})


if __name__ == "__main__":
    asyncio.run(main(pathlib.Path(sys.argv[1])))
