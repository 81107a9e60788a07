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


def test_the_demo_agrees_on_what_it_was_given(tmp_path: pathlib.Path) -> None:
    text = "".join(f"line {number} of {number % 7}\n" for number in range(3000))
    demo = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py"), "--input", "-", "--out", "states"],
        input=text,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=110,
        check=False,
    )
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


def test_the_demo_refuses_an_empty_input(tmp_path: pathlib.Path) -> None:
    demo = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py"), "--input", "-"],
        input="",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert demo.returncode == 1
    assert "the input has no lines" in demo.stderr
