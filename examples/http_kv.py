"""A key-value service on aiohttp: three replicas of this program are the database.

python examples/http_kv.py 1    # and 2 and 3, in terminals of their own
curl -X PUT --data blue localhost:8001/colour
curl localhost:8003/colour
"""

from __future__ import annotations

import json
import sys

from aiohttp import web
from aiohttp.typedefs import Handler

import aioraft
import aioraft.aiohttp

MEMBERS = {1: "127.0.0.1:7401", 2: "127.0.0.1:7402", 3: "127.0.0.1:7403"}


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


def make_app(node: aioraft.Node[str | None], state: Dictionary) -> web.Application:
    """Build the application of one replica."""
    routes = web.RouteTableDef()

    @routes.get("/{key}")
    async def get(request: web.Request) -> web.Response:
        await node.read_barrier()  # everything that anyone has put before now is in `state`
        value = state.items.get(request.match_info["key"])
        return web.Response(status=404) if value is None else web.Response(text=value)

    @routes.put("/{key}")
    async def put(request: web.Request) -> web.Response:
        try:
            value = await request.text()
        except UnicodeDecodeError:
            raise web.HTTPBadRequest(text="the value must be text") from None
        return await change(request.match_info["key"], value)

    @routes.delete("/{key}")
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
    aioraft.aiohttp.setup(app, node)
    return app


def main() -> None:
    """Run the replica whose id is the argument."""
    number = int(sys.argv[1])
    state = Dictionary()
    node = aioraft.Node(id=number, members=MEMBERS, data_dir=f"data/http-kv-{number}", state_machine=state)
    web.run_app(make_app(node, state), host="127.0.0.1", port=8000 + number)


if __name__ == "__main__":
    main()
