"""A key-value service whose pods are its database: what statefulset.yaml beside it runs.

PUT /keys/{key} with the value as the body, GET and DELETE /keys/{key}; the probes are /readyz and /healthz.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys

from aiohttp import web
from aiohttp.typedefs import Handler

import aioraft

READY_TIMEOUT_S = 1.0
"""Shorter than the probe's own timeout, so that the reason is in the answer."""
DRAIN_S = 5.0
"""How long requests may take that are under way when the pod is told to end; the node then gets `close_timeout`."""


class Dictionary(aioraft.StateMachine[str | None]):
    """A command is a JSON pair [key, value]; its result is the value that was there before."""

    def __init__(self) -> None:
        self.items: dict[str, str] = {}

    def apply(self, entry: aioraft.Entry) -> str | None:
        key, value = json.loads(entry.data)
        before = self.items.pop(key, None)
        if value is not None:
            self.items[key] = value
        return before

    def snapshot(self) -> bytes:
        """Return the state as of the last `apply`, so that the log behind it can go."""
        return json.dumps(self.items).encode()

    def restore(self, data: bytes) -> None:
        """Take it in, at a start or when the others no longer have what this node lacks."""
        self.items = json.loads(data)


def make_node(state: Dictionary, environment: dict[str, str]) -> aioraft.Node[str | None]:
    """Build this pod's node; the environment is the manifest's, the same text for every pod."""
    return aioraft.Node(
        name=environment["POD_NAME"],
        seeds=environment["SEEDS"].split(","),
        bootstrap_expect=int(environment["BOOTSTRAP_EXPECT"]),
        advertise=environment["ADVERTISE"],
        listen=environment["LISTEN"],
        data_dir=environment["DATA_DIR"],
        cluster=environment["CLUSTER"],
        state_machine=state,
        # Nothing is encrypted: networkpolicy.yaml keeps strangers out.
        config=aioraft.Config(insecure=True),
    )


def make_app(node: aioraft.Node[str | None], state: Dictionary) -> web.Application:
    """Build the pod's HTTP service."""
    routes = web.RouteTableDef()

    @routes.get("/healthz")
    async def healthz(_: web.Request) -> web.Response:
        # The process is alive, whatever the others do: a restart would not bring back a lost quorum.
        return web.Response(text="alive\n")

    @routes.get("/readyz")
    async def readyz(_: web.Request) -> web.Response:
        # There is a leader, and this pod has caught up with it.
        await node.ready(timeout=READY_TIMEOUT_S)
        return web.Response(text=f"node {node.id} is ready\n")

    @routes.get("/keys/{key}")
    async def get(request: web.Request) -> web.Response:
        await node.read_barrier()  # everything that anyone has put before now is in `state`
        value = state.items.get(request.match_info["key"])
        return web.Response(status=404) if value is None else web.Response(text=value)

    @routes.put("/keys/{key}")
    async def put(request: web.Request) -> web.Response:
        try:
            value = await request.text()
        except UnicodeDecodeError:
            raise web.HTTPBadRequest(text="the value must be text") from None
        return await change(request.match_info["key"], value)

    @routes.delete("/keys/{key}")
    async def delete(request: web.Request) -> web.Response:
        return await change(request.match_info["key"], None)

    async def change(key: str, value: str | None) -> web.Response:
        before = await node.propose(json.dumps([key, value]).encode())
        return web.json_response({"before": before})

    @web.middleware
    async def explain(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except aioraft.RaftError as error:
            outcome = None if error.outcome is None else error.outcome.value
            return web.json_response({"error": str(error), "outcome": outcome}, status=503)

    app = web.Application(middlewares=[explain])
    app.add_routes(routes)
    return app


async def serve(environment: dict[str, str]) -> None:
    """Run the pod until it is told to end (SIGTERM), or its node stops by itself."""
    state = Dictionary()
    node = make_node(state, environment)
    runner = web.AppRunner(make_app(node, state), shutdown_timeout=DRAIN_S)
    await runner.setup()
    told_to_end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_end.set)
    # Before the node has its place, which takes the other pods: the probes are answered meanwhile.
    await web.TCPSite(runner, environment["POD_IP"], int(environment["HTTP_PORT"])).start()
    running = asyncio.create_task(run(node))
    ending = asyncio.create_task(told_to_end.wait())
    try:
        await asyncio.wait([running, ending], return_when=asyncio.FIRST_COMPLETED)
    finally:
        ending.cancel()
        await runner.cleanup()  # no new requests; those under way still have their node
        await node.aclose()  # a leader hands over
        with contextlib.suppress(aioraft.NodeClosedError):  # closed while it waited for the others
            await running


async def run(node: aioraft.Node[str | None]) -> None:
    """Start the node, and wait until it ends: `FatalError` if it stopped by itself."""
    await node.start()
    await node.wait_stopped()


def main() -> None:
    """Run this pod; the exit status says whether it was told to end."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(serve(dict(os.environ)))
    except aioraft.RaftError as error:
        sys.exit(f"the node has stopped: {error}")


if __name__ == "__main__":
    main()
