"""Writes an archive of a data directory, as the aioraft that is installed leaves it.

    python tests/formats/make_archive.py format-1

Before a release whose files differ from the last archive's, in whatever way: a name that says which format it is. The
archives are never written again: `test_formats.py` opens each of them.
"""

from __future__ import annotations

import asyncio
import json
import pathlib
import sys
import tarfile
import tempfile

import aioraft

HERE = pathlib.Path(__file__).parent


class Stock(aioraft.StateMachine[int]):
    """What the archives' commands are for."""

    def __init__(self) -> None:
        self.items: dict[str, int] = {}

    def apply(self, entry: aioraft.Entry) -> int:
        sku, delta = json.loads(entry.data)
        self.items[sku] = self.items.get(sku, 0) + delta
        return self.items[sku]

    def snapshot(self) -> bytes:
        return json.dumps(self.items).encode()

    def restore(self, data: bytes) -> None:
        self.items = json.loads(data)


def node(data_dir: pathlib.Path, stock: Stock) -> aioraft.Node[int]:
    """Return the archives' node: the only one of its cluster."""
    return aioraft.Node(
        id=1,
        members={1: "127.0.0.1:7400"},  # nobody dials it
        listen="127.0.0.1:0",
        cluster="archive",
        data_dir=data_dir,
        state_machine=stock,
        config=aioraft.Config(snapshot_trail=2, election_timeout=0.3, heartbeat_interval=0.03),
    )


async def fill(data_dir: pathlib.Path) -> dict[str, object]:
    """Start the node twice, with a snapshot in between; return what is in the directory then."""
    async with node(data_dir, Stock()) as first:
        for number in range(10):
            await first.propose(json.dumps(["bolt", number]).encode())
        snapshot_index = await first.snapshot()
        await first.propose(b'["nut", 7]')
    stock = Stock()
    async with node(data_dir, stock) as second:
        await second.propose(b'["nut", -2]')
        applied = second.status().python_applied
    return {
        "aioraft": aioraft.__version__,
        "items": stock.items,
        "snapshot": snapshot_index,
        "applied": applied,
        "boot": 2,
    }


def main() -> None:
    archive = HERE / f"{sys.argv[1]}.tar.gz"
    if archive.exists():
        sys.exit(f"{archive} is there already, and stays as it was written: choose another name")
    with tempfile.TemporaryDirectory() as home:
        data_dir = pathlib.Path(home) / "data"
        expected = asyncio.run(fill(data_dir))
        (pathlib.Path(home) / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")
        with tarfile.open(archive, "x:gz", format=tarfile.GNU_FORMAT) as tar:
            for name in ("data", "expected.json"):
                tar.add(pathlib.Path(home) / name, name, filter=anonymous)


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out who wrote it."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main()
