"""That `chaos.py` would notice. Needs the judge: `make test-chaos` builds it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import pathlib
import random
import subprocess
import sys
from typing import Any

import pytest

from chaos import ELECTION_TIMEOUT_S
from history import Recorder, read
from ledger import Ledger
from network import DIALER, Network
from objects import NOTHING
from schedule import CHANGES, KINDS, draw, draw_changes
from verdict import agree, check_calls

DEADLINE_S = 10.0
SECONDS = 40.0
"""In which every kind of fault comes."""
LENIENT_SEED = "81"
"""Its faults leave most of eight seconds for work: the leader killed twice, fsyncs of 20 ms, a stall, two nodes apart."""
A = "1.1"
"""The incarnation whose history these tests write."""


@pytest.mark.parametrize(
    ("breaks", "found"),
    [("stale-reads", "behaves as no such object can"), ("retries", "calls are applied twice: ")],
)
def test_a_run_with_clients_that_do_it_wrong_fails(tmp_path: pathlib.Path, breaks: str, found: str) -> None:
    program = pathlib.Path(__file__).with_name("chaos.py")
    broken = subprocess.run(
        [sys.executable, program, "--seconds", "8", "--seed", LENIENT_SEED, "--static", "--break", breaks],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    sys.stdout.write(broken.stdout)
    assert broken.returncode == 1
    assert found in broken.stdout
    assert "chaos: recovered" in broken.stdout, "all else is as it should be"
    assert f"again with: make chaos SECONDS=8 NODES=3 SEED={LENIENT_SEED}" in broken.stdout


# What is checked besides


def write_history(folder: pathlib.Path, *ends: str) -> None:
    """One call for each of `ends`, all of them writes."""
    recorder = Recorder(folder / A)
    for end in ends:
        call = recorder.begin(0, ["write", 5])
        match end:
            case "ok":
                recorder.answer(call, NOTHING)
            case "applied" | "refused" | "unknown":
                recorder.end(call, end)


def report(*applied: str, doubled: tuple[str, ...] = ()) -> dict[str, Any]:
    ledger = Ledger()
    for name in applied:
        ledger.add(name)
    return {"applied": ledger.dump(), "doubled": list(doubled)}


@pytest.mark.parametrize(
    ("ends", "said", "problem"),
    [
        (["ok", "applied"], report(f"{A}.0", f"{A}.1"), None),
        (["ok", "applied"], report(f"{A}.0"), f"1 calls are acknowledged and lost: {A}.1"),
        (["ok"], report(), f"1 calls are acknowledged and lost: {A}.0"),
        (["refused"], report(), None),
        (["refused"], report(f"{A}.0"), f"1 calls are refused and applied: {A}.0"),
        (["unknown"], report(), None),
        (["unknown"], report(f"{A}.0"), None),
        (["ok"], report(f"{A}.0", doubled=(f"{A}.0",)), f"1 calls are applied twice: {A}.0"),
        (["ok"], report(f"{A}.0", "2.1.0"), "1 calls are applied and never asked for: 2.1.0"),
        (["none"], report(), f"1 calls are without an end, though nobody killed their process: {A}.0"),
    ],
)
def test_what_became_of_the_calls_is_compared_with_what_was_applied(
    tmp_path: pathlib.Path, ends: list[str], said: dict[str, Any], problem: str | None
) -> None:
    write_history(tmp_path, *ends)
    counts, problems = check_calls(tmp_path, said, killed=set())
    assert problems == ([] if problem is None else [problem])
    assert counts.total() == len(ends)


def test_calls_of_a_killed_process_may_have_no_end(tmp_path: pathlib.Path) -> None:
    write_history(tmp_path, "ok", "none")
    with (tmp_path / A).open("a") as torn:
        torn.write("1 ok 12")
    assert [call.end for call in read(tmp_path / A).values()] == ["ok", None]
    assert check_calls(tmp_path, report(f"{A}.0"), killed={A})[1] == []


def test_replicas_that_differ_are_found() -> None:
    one = {"index": 5, "digest": "x", "applied": {}}
    assert agree([one, one])
    assert not agree([one, one | {"index": 6, "digest": "y"}])
    for other in ({"digest": "y"}, {"applied": {"1.1": "03"}}):
        with pytest.raises(AssertionError, match="the replicas differ at index 5"):
            agree([one, one | other])


# The faults


@pytest.mark.parametrize("nodes", [3, 5])
def test_a_seed_decides_the_schedule_which_holds_faults_of_all_kinds(nodes: int) -> None:
    for seed in map(str, range(50)):
        faults = draw(seed, SECONDS, nodes, ELECTION_TIMEOUT_S)
        assert faults == draw(seed, SECONDS, nodes, ELECTION_TIMEOUT_S)
        assert {fault.kind for fault in faults} == set(KINDS)
        for one, other in itertools.pairwise(faults):
            assert one.at_s <= other.at_s
        for fault in faults:
            assert fault.at_s + fault.seconds <= SECONDS
            assert fault.nodes or fault.ways, fault
            if fault.kind == "frozen":  # long enough for the others to elect, unless the run ends
                assert fault.seconds >= 2 * ELECTION_TIMEOUT_S or fault.at_s + fault.seconds == SECONDS
    assert draw("1", SECONDS, nodes, ELECTION_TIMEOUT_S) != draw("2", SECONDS, nodes, ELECTION_TIMEOUT_S)


def test_a_seed_decides_what_happens_to_the_members_which_is_everything() -> None:
    for seed in map(str, range(50)):
        changes = draw_changes(seed, SECONDS, 3)
        assert changes == draw_changes(seed, SECONDS, 3)
        assert {change.kind for change in changes} == set(CHANGES)
        assert all(change.at_s + change.seconds <= SECONDS and change.nodes for change in changes)
    assert draw_changes("1", SECONDS, 3) != draw_changes("2", SECONDS, 3)


@pytest.mark.asyncio
async def test_a_way_that_is_held_holds_back_what_goes_that_way_and_loses_nothing() -> None:
    async with asyncio.timeout(DEADLINE_S), echoing() as address:
        network = Network({1: "nowhere:1", 2: address}, random.Random(1))
        doors = await network.start()
        reader, writer = await asyncio.open_connection(*doors[2].split(":"))
        hello = DIALER.pack(1)
        writer.write(hello + b"a")
        assert await reader.readexactly(len(hello) + 1) == hello + b"a"
        for way in ((1, 2), (2, 1)):
            with network.ways[way].held():
                writer.write(b"b")
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(reader.readexactly(1), 0.1)
            assert await reader.readexactly(1) == b"b"
        assert all(way.is_clear for way in network.ways.values())

        with network.ways[2, 1].held():
            network.break_connections([(1, 2)])
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()
        await network.close()


@contextlib.asynccontextmanager
async def echoing() -> Any:
    """A node that says whatever it hears."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while heard := await reader.read(1000):
                writer.write(heard)
        writer.transport.abort()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"{host}:{port}"
    finally:
        server.close()
