"""aioraft.aiohttp: a node lives as long as its application, and is driven over HTTP."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

import aioraft
import aioraft.aiohttp
from aioraft.testing import TEST_CONFIG
from machines import Adder

pytestmark = pytest.mark.asyncio


def make_node() -> aioraft.Node[int]:
    return aioraft.Node(
        id=1,
        members={1: "127.0.0.1:7401"},
        data_dir=None,
        state_machine=Adder(),
        listen="127.0.0.1:0",
        config=TEST_CONFIG,
    )


async def test_a_node_starts_and_stops_with_its_application() -> None:
    app = web.Application()
    node = make_node()
    key = aioraft.aiohttp.setup(app, node)

    async def add(request: web.Request) -> web.Response:
        return web.json_response(await request.app[key].propose(await request.read()))

    app.router.add_post("/", add)
    async with TestClient(TestServer(app)) as client:
        for total in (5, 10):
            async with client.post("/", data=b"5") as response:
                assert await response.json() == total
    with pytest.raises(aioraft.NodeClosedError):
        await node.propose(b"5")


async def test_several_nodes_need_keys_of_their_own() -> None:
    app = web.Application()
    assert aioraft.aiohttp.setup(app, make_node()) is aioraft.aiohttp.NODE
    with pytest.raises(ValueError, match="a key of its own"):
        aioraft.aiohttp.setup(app, make_node())
    other: web.AppKey[aioraft.Node[int]] = web.AppKey("other")
    assert aioraft.aiohttp.setup(app, make_node(), key=other) is other


async def test_without_aiohttp_the_import_says_what_to_install() -> None:
    program = """
        import sys
        sys.modules["aiohttp"] = None
        import aioraft
        try:
            import aioraft.aiohttp
        except ImportError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=True, capture_output=True, text=True, timeout=60
    )
    assert "pip install 'aioraft[aiohttp]'" in done.stdout
