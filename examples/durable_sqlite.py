"""A state machine on sqlite3: a table of accounts that outlives its process, and is not applied again from the log.

Run `python examples/durable_sqlite.py DIRECTORY`, kill it with any signal, and run it again: each transfer counts once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import sqlite3
import sys
from collections.abc import Callable

import aioraft

MEMBERS = {1: f"127.0.0.1:{os.environ.get('PORT', '7400')}"}
SCHEMA = """
CREATE TABLE IF NOT EXISTS account (name TEXT PRIMARY KEY, balance INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS position (entry_index INTEGER NOT NULL, entry_term INTEGER NOT NULL);
"""


class Accounts(aioraft.StateMachine[int]):
    """Balances; a command is `["name", amount]`, and its result the new balance."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.db = self.connect()
        self.db.executescript(SCHEMA)

    def connect(self) -> sqlite3.Connection:
        # The thread that serialises a snapshot uses a connection that was made on the loop.
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        # In this mode a reader sees what was there when it began, whatever is written meanwhile.
        db.execute("PRAGMA journal_mode=WAL")
        # No fsync for each entry: what a power failure takes from the end is applied again from the log.
        db.execute("PRAGMA synchronous=NORMAL")
        return db

    def apply(self, entry: aioraft.Entry) -> int:
        # What is wrong with a command raises here: on every replica, and before anything has changed.
        name, amount = json.loads(entry.data)
        name, amount = str(name), int(amount)
        try:
            # The effect and its place in the log, both or none.
            self.db.execute("BEGIN IMMEDIATE")
            try:
                self.db.execute(
                    "INSERT INTO account VALUES (?, ?) ON CONFLICT DO UPDATE SET balance = balance + excluded.balance",
                    (name, amount),
                )
                self.db.execute("DELETE FROM position")
                self.db.execute("INSERT INTO position VALUES (?, ?)", (entry.index, entry.term))
                (balance,) = self.db.execute("SELECT balance FROM account WHERE name = ?", (name,)).fetchone()
                self.db.execute("COMMIT")
            except BaseException:
                self.db.rollback()
                raise
        except sqlite3.Error as error:
            # An exception is a result, the same on every replica; a failing disk is none, so this node must stop.
            raise OSError(f"{self.path}: {error}") from error
        return int(balance)

    def durable_applied(self) -> tuple[int, int] | None:
        found: tuple[int, int] | None = self.db.execute("SELECT entry_index, entry_term FROM position").fetchone()
        return found

    def snapshot(self) -> Callable[[], bytes]:
        reader = self.connect()
        # The read transaction that begins here is the capture: later entries are not seen in it.
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM position").fetchall()

        def serialise() -> bytes:  # in a thread
            with contextlib.closing(reader):
                return reader.serialize()

        return serialise

    def restore(self, data: bytes) -> None:
        received = self.path.with_suffix(".received")
        received.write_bytes(data)
        with contextlib.closing(sqlite3.connect(received)) as source:
            source.backup(self.db)  # in one transaction: a kill leaves the old state or the new one
        received.unlink()


async def main(directory: pathlib.Path) -> None:
    accounts = Accounts(directory / "accounts.sqlite3")
    node = aioraft.Node(id=1, members=MEMBERS, data_dir=directory / "raft", state_machine=accounts)
    async with node:
        print("the database stands at", accounts.durable_applied(), flush=True)
        while True:
            print("alice has", await node.propose(b'["alice", 1]', timeout=None), flush=True)
            await asyncio.sleep(1)


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(folder))
