"""Every program under examples/ does what it says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer

import aioraft
import http_kv
from aioraft.testing import TEST_CONFIG

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


@contextlib.asynccontextmanager
async def http_replicas(data_dir: pathlib.Path) -> AsyncIterator[list[str]]:
    """Three replicas of the key-value service; their base URLs."""
    sockets = [socket.socket() for _ in range(3)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    members = {number: f"127.0.0.1:{one.getsockname()[1]}" for number, one in enumerate(sockets, start=1)}
    async with contextlib.AsyncExitStack() as stack:
        servers: list[TestServer] = []
        for number, one in enumerate(sockets, start=1):
            state = http_kv.Dictionary()
            node = aioraft.Node(
                id=number,
                members=members,
                data_dir=data_dir / str(number),
                state_machine=state,
                listen=one,
                config=TEST_CONFIG,
            )
            server = TestServer(http_kv.make_app(node, state))
            await server.start_server()
            stack.push_async_callback(server.close)
            servers.append(server)
        yield [str(server.make_url("/")) for server in servers]


@pytest.mark.asyncio
async def test_the_http_service_reads_everywhere_what_was_written_anywhere(tmp_path: pathlib.Path) -> None:
    async with http_replicas(tmp_path) as urls, ClientSession() as session:
        for turn in range(9):
            writer, reader = urls[turn % 3], urls[(turn + 1) % 3]
            async with session.put(f"{writer}colour", data=f"blue {turn}") as response:
                assert response.status == 200
                assert await response.json() == {"before": f"blue {turn - 1}" if turn else None}
            async with session.get(f"{reader}colour") as response:
                assert await response.text() == f"blue {turn}"
        async with session.delete(f"{urls[0]}colour") as response:
            assert (await response.json())["before"] == "blue 8"
        async with session.get(f"{urls[2]}colour") as response:
            assert response.status == 404


@pytest.mark.asyncio
async def test_three_counters_count_together(tmp_path: pathlib.Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1] % 20_000 + 10_000  # below the ports that the system gives out
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            str(EXAMPLES / "counter.py"),
            str(number),
            stdout=subprocess.PIPE,
            cwd=tmp_path,
            env=os.environ | {"PORT": str(port)},
        )
        for number in (1, 2, 3)
    ]
    try:
        counts: list[int] = []
        async with asyncio.timeout(60):
            for process in processes:
                assert process.stdout is not None
                counts += [int(await process.stdout.readline()) for _ in range(2)]
        assert len(set(counts)) == len(counts)  # no two of them were told the same number
    finally:
        for process in processes:
            process.send_signal(signal.SIGINT)
        assert [await asyncio.wait_for(process.wait(), 20) for process in processes] == [0, 0, 0]


def run_demo(folder: pathlib.Path, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py"), *arguments],
        input=given,
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=110,
        check=False,
    )


def test_the_demo_agrees_on_what_it_was_given(tmp_path: pathlib.Path) -> None:
    text = "".join(f"line {number} of {number % 7}\n" for number in range(3000))
    demo = run_demo(tmp_path, "--input", "-", "--out", "states", given=text)
    assert demo.returncode == 0, demo.stderr
    last = demo.stdout.splitlines()[-1]
    assert re.fullmatch(
        r"agreed: 3 replicas, 3000 commands, digest [0-9a-f]{16}, failover \d+ ms, re-proposed \d+, duplicates skipped \d+",
        last,
    )
    states = [json.loads((tmp_path / "states" / f"replica-{number}.json").read_text()) for number in (1, 2, 3)]
    assert states[0] == states[1] == states[2]
    assert states[0]["lines"] == 3000
    assert states[0]["words"]["line"] == 3000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--input", "-"), "the input has no lines"),
        (("--input", "missing.txt"), "--input missing.txt cannot be read (No such file or directory): give a text"),
        (("--input", "."), "--input . cannot be read (Is a directory)"),
        (("--out", "file/below"), "Not a directory"),
    ],
)
def test_the_demo_says_what_is_wrong_and_leaves_nothing(
    tmp_path: pathlib.Path, arguments: tuple[str, ...], says: str
) -> None:
    (tmp_path / "file").touch()
    demo = run_demo(tmp_path, *arguments)
    assert demo.returncode == 1
    assert says in demo.stderr
    assert "Traceback" not in demo.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_demo_takes_a_single_line_of_anything(tmp_path: pathlib.Path) -> None:
    (tmp_path / "input").write_bytes(b"\xff\x00 one")
    demo = run_demo(tmp_path, "--input", "input")
    assert demo.returncode == 0, demo.stderr
    assert demo.stdout.splitlines()[-1].startswith("agreed: 3 replicas, 1 commands, ")
    assert list((tmp_path / ".demo").iterdir()) == []


@pytest.mark.asyncio
@pytest.mark.parametrize("shown", ["follower", "killed"])  # while it starts, and half-way
async def test_ctrl_c_leaves_no_process_of_the_demo(tmp_path: pathlib.Path, shown: str) -> None:
    demo = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / "demo.py"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert demo.stdout is not None
    try:
        async with asyncio.timeout(60):
            while shown not in (line := (await demo.stdout.readline()).decode()):
                assert line, "it ended"
        assert len(processes_in(tmp_path)) >= 3
        os.killpg(demo.pid, signal.SIGINT)  # as a terminal does
        _, errors = await asyncio.wait_for(demo.communicate(), 30)
    finally:
        if demo.returncode is None:
            demo.kill()
    assert (demo.returncode, errors.decode()) == (130, "interrupted\n")
    assert processes_in(tmp_path) == []
    assert list((tmp_path / ".demo").iterdir()) == []


def run_tests_of(pytester: pytest.Pytester, example: str) -> pytest.RunResult:
    (pytester.path / example).write_text((EXAMPLES / example).read_text())
    return pytester.runpytest_subprocess(example, "-p", "no:cacheprovider", "-p", "no:asyncio")


def test_three_mistakes_are_caught_by_the_fixture(pytester: pytest.Pytester) -> None:
    result = run_tests_of(pytester, "not_deterministic.py")
    result.assert_outcomes(failed=3)
    for mistake in ("raffle", "leases", "tokens"):
        result.stdout.fnmatch_lines(
            [
                f"*test_{mistake}*",
                "*SimulationError: apply is deterministic: not with seed *",
                "*First diverging entry: Entry(index=*",
                f"*To run it again: pytest not_deterministic.py::test_{mistake} --raft-seed *",
            ]
        )


def test_hypothesis_finds_nothing_wrong_with_the_stock(pytester: pytest.Pytester) -> None:
    run_tests_of(pytester, "property_based.py").assert_outcomes(passed=1)


def processes_in(folder: pathlib.Path) -> list[str]:
    """The processes that work there."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or is another user's
            if (process / "cwd").readlink() == folder and "zombie" not in (process / "status").read_text():
                found.append(process.name)
    return found
