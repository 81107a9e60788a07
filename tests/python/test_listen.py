"""Where a node listens: nothing that others can reach, unless one says so."""

from __future__ import annotations

import socket

import pytest

import aioraft
from aioraft._listen import bind

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:0", "127.0.0.2:0"])
async def test_loopback_is_free(listen: str) -> None:
    with await bind(listen, insecure=False) as bound:
        assert bound.getsockname()[1] > 0


async def test_what_others_can_reach_is_refused() -> None:
    with pytest.raises(aioraft.ConfigError, match=r"listen = '0\.0\.0\.0:0' is 0\.0\.0\.0, which other machines can"):
        await bind("0.0.0.0:0", insecure=False)
    with socket.socket() as everywhere:
        everywhere.bind(("0.0.0.0", 0))
        with pytest.raises(aioraft.ConfigError, match="other machines can reach"):
            await bind(everywhere, insecure=False)
        assert await bind(everywhere, insecure=True) is everywhere
    with await bind("0.0.0.0:0", insecure=True) as bound:
        assert bound.getsockname()[0] == "0.0.0.0"


async def test_a_taken_port_is_a_config_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(aioraft.ConfigError, match=rf"listen = '{listen}': cannot be bound") as caught:
            await bind(listen, insecure=False)
    assert isinstance(caught.value.__cause__, OSError)


async def test_a_name_that_does_not_resolve() -> None:
    with pytest.raises(aioraft.ConfigError, match=r"no-such-host\.invalid:7400': the name cannot be resolved"):
        await bind("no-such-host.invalid:7400", insecure=False)
