"""A client of etcd, through aetcd: `python etcd_client.py CONNECTIONS HOST:PORT HOST:PORT HOST:PORT`.

All its connections go to the leader, which answers quickest. Orders and answers as of bench_node.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Coroutine

import aetcd

from load import Call, obey, say

PATIENCE_S = 30.0
KEY = b"bench"


def connect(address: str) -> aetcd.Client:
    host, port = address.rsplit(":", 1)
    # Without this, gRPC sends the calls of all clients of one address through one connection.
    return aetcd.Client(host, int(port), options={"grpc.use_local_subchannel_pool": 1})


async def find_leader(addresses: list[str]) -> str:
    """The address of the member that leads, once there is one."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with contextlib.suppress(aetcd.ClientError):
            async with connect(addresses[0]) as client:
                leader = (await client.status()).leader
                if leader is not None:
                    return str(leader.client_urls[0]).removeprefix("http://")
        await asyncio.sleep(0.1)
    raise TimeoutError(f"etcd has no leader after {PATIENCE_S:g} s")


def puts(client: aetcd.Client) -> Call:
    put: Callable[[bytes, bytes], Coroutine[None, None, object]] = client.put
    return lambda value: put(KEY, value)


def gets(client: aetcd.Client) -> Call:
    get: Callable[[bytes], Coroutine[None, None, object]] = client.get  # linearizable unless told otherwise
    return lambda _: get(KEY)


async def main(connections: int, addresses: list[str]) -> None:
    leader = await find_leader(addresses)
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(leader)) for _ in range(connections)]
        for client in clients:
            await client.put(KEY, b"")
        say({"ready": True})
        await obey({"propose": [puts(client) for client in clients], "read": [gets(client) for client in clients]})


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2:]))
