"""examples/durable_sqlite.py: a state machine that is durable itself, killed at random points."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import sqlite3
import sys
from typing import Any

import pytest

import aioraft
from durable_sqlite import Accounts
from processes import DEADLINE_S, FAULT, make_random, reserved_addresses

PROGRAM = pathlib.Path(__file__).with_name("durable_node.py")
EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "durable_sqlite.py"
ROUNDS = int(os.environ.get("AIORAFT_KILL_ROUNDS", "10"))


def entry(index: int, account: str, amount: int) -> aioraft.Entry:
    return aioraft.Entry(index, 1, json.dumps([account, amount]).encode())


def balances(path: pathlib.Path) -> dict[str, int]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT name, balance FROM account"))


def test_effect_and_position_are_stored_together(tmp_path: pathlib.Path) -> None:
    accounts = Accounts(tmp_path / "db")
    assert accounts.durable_applied() is None
    assert accounts.apply(entry(5, "alice", 3)) == 3
    for wrong in (b"[1]", b"no json", b'["alice", "much"]', b'["alice", 1e99]'):
        with pytest.raises(
            (ValueError, OverflowError)
        ):  # results: nothing has changed, and the log goes on behind them
            accounts.apply(aioraft.Entry(6, 1, wrong))
    assert Accounts(tmp_path / "db").durable_applied() == (5, 1)
    assert accounts.apply(entry(7, "alice", -1)) == 2
    again = Accounts(tmp_path / "db")
    assert (again.durable_applied(), balances(tmp_path / "db")) == ((7, 1), {"alice": 2})


def test_a_failing_database_stops_the_node(tmp_path: pathlib.Path) -> None:
    accounts = Accounts(tmp_path / "db")
    accounts.db.execute("DROP TABLE position")
    with pytest.raises(OSError, match="no such table"):
        accounts.apply(entry(1, "alice", 1))
    assert balances(tmp_path / "db") == {}


def test_a_snapshot_is_the_state_when_it_was_asked_for(tmp_path: pathlib.Path) -> None:
    accounts = Accounts(tmp_path / "db")
    accounts.apply(entry(1, "alice", 1))
    serialise = accounts.snapshot()
    for index in range(2, 100):
        accounts.apply(entry(index, "alice", 1))
    other = Accounts(tmp_path / "other")
    other.apply(entry(1, "bob", 1))
    other.restore(serialise())
    assert (other.durable_applied(), balances(tmp_path / "other")) == ((1, 1), {"alice": 1})
    other.restore(accounts.snapshot()())
    assert (other.durable_applied(), balances(tmp_path / "other")) == ((99, 1), {"alice": 99})


@pytest.mark.asyncio
async def test_the_program_goes_on_where_it_was_killed(tmp_path: pathlib.Path) -> None:
    said: list[str] = []
    with reserved_addresses(1) as members:
        environment = os.environ | {"PORT": members[1].rsplit(":", 1)[1]}
        for _ in range(3):
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(EXAMPLE), str(tmp_path), stdout=asyncio.subprocess.PIPE, env=environment
            )
            assert process.stdout is not None
            try:
                async with asyncio.timeout(DEADLINE_S):
                    said += [(await process.stdout.readline()).decode().strip() for _ in range(2)]
            finally:
                process.kill()
                await process.communicate()
    assert said[0] == "the database stands at None"
    assert said[1::2] == ["alice has 1", "alice has 2", "alice has 3"]
    assert "None" not in said[2] + said[4]


async def live(folder: pathlib.Path, start: int, port: int, lines: int, then_s: float) -> list[list[Any]]:
    """Start the program, kill it `then_s` after it has said so many lines, and return what it said."""
    with (folder / "log").open("ab") as log:
        arguments = [str(PROGRAM), str(folder), str(start), str(port)]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env=os.environ | {"PYTHONPATH": str(EXAMPLE.parent)},
        )
    assert process.stdout is not None
    said: list[bytes] = []
    try:
        async with asyncio.timeout(DEADLINE_S):
            while len(said) < lines:
                said.append(await process.stdout.readline())
                assert said[-1], (folder / "log").read_text()
        await asyncio.sleep(then_s)
        assert process.returncode is None, (folder / "log").read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    said += (await process.stdout.read()).splitlines(keepends=True)
    await process.wait()
    return [json.loads(line) for line in said if line.endswith(b"\n")]


@pytest.mark.timeout(60 + 5 * ROUNDS)
@pytest.mark.parametrize("loses_its_database", [False, True], ids=["", "its database lost at times"])
@pytest.mark.asyncio
async def test_killed_at_random_points_each_command_is_applied_once(
    loses_its_database: bool, tmp_path: pathlib.Path
) -> None:
    chance = make_random()
    acknowledged: set[str] = set()
    restores = 0
    with reserved_addresses(1) as members:
        port = int(members[1].rsplit(":", 1)[1])
        for start in range(ROUNDS):
            lines = chance.choice([1, 2, 3, chance.randrange(1, 400)])  # a start, or somewhere in a life
            said = await live(tmp_path, start, port, lines, chance.uniform(0, 0.02))
            (kind, held), *rest = said
            assert kind == "holds"
            for kind, *what in rest:
                assert kind != "doubled", what
                if kind == "applies" and held is not None:
                    assert what[0] > held[0]  # not one of those that it holds
                restores += kind == "restores"
            acknowledged |= {what[0] for kind, *what in rest if kind == "acknowledged"}
            assert FAULT.search((tmp_path / "log").read_text()) is None
            found = balances(tmp_path / "accounts.sqlite3")
            assert set(found.values()) <= {1}
            assert acknowledged <= found.keys()
            if loses_its_database and chance.random() < 0.3:
                for file in tmp_path.glob("accounts.sqlite3*"):
                    file.unlink()
                said = await live(tmp_path, 1000 + start, port, 50, 0)
                assert said[0] == ["holds", None]
                assert acknowledged <= balances(tmp_path / "accounts.sqlite3").keys()
                restores += ["restores"] in said
    sys.stdout.write(f"{ROUNDS} kills, {len(acknowledged)} commands, {restores} restores\n")
    assert acknowledged
    assert loses_its_database or restores == 0


@pytest.mark.asyncio
async def test_a_database_of_another_log_is_refused(tmp_path: pathlib.Path) -> None:
    with reserved_addresses(1) as members:
        for applied in ((1_000_000, 1), (2, 77)):
            accounts = Accounts(tmp_path / "db")
            accounts.db.execute("DELETE FROM position")
            accounts.db.execute("INSERT INTO position VALUES (?, ?)", applied)
            node = aioraft.Node(id=1, members=members, data_dir=tmp_path / "raft", state_machine=accounts)
            with pytest.raises(aioraft.RaftError, match=str(applied[0])):
                await node.start()
