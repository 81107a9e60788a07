"""A node that starts and stops with an aiohttp application. Needs the extra: `pip install aioraft[aiohttp]`.

```python
app = web.Application()
NODE = aioraft.aiohttp.setup(app, aioraft.Node(id=1, ...))

async def put(request: web.Request) -> web.Response:
    await request.app[NODE].propose(await request.read())
```
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeVar, cast

from ._node import Node

try:
    from aiohttp import web
except ImportError as _missing:
    raise ImportError(
        "aioraft.aiohttp needs aiohttp 3.9 or newer, which is not installed: pip install 'aioraft[aiohttp]'"
    ) from _missing

__all__ = ["NODE", "setup"]

R = TypeVar("R")

NODE: web.AppKey[Node[Any]] = web.AppKey("aioraft.node", Node)
"""Where `setup` puts the node unless it is given another key."""


def setup(app: web.Application, node: Node[R], *, key: web.AppKey[Node[R]] | None = None) -> web.AppKey[Node[R]]:
    """Start `node` when `app` starts and close it when `app` is cleaned up; return the key of `app[key]`.

    The application accepts requests once the node listens; a handler that needs a leader awaits one within its own
    calls' deadlines. A node that stops by itself leaves the application running: a service that is to end then awaits
    `node.wait_stopped()` in a task of its own. Several nodes in one application need a `key` each. Raises ValueError if
    the key is taken.
    """
    where: web.AppKey[Node[R]] = cast("web.AppKey[Node[R]]", NODE) if key is None else key
    if where in app:
        raise ValueError(f"the application has a node under {where!r} already: give this one a key of its own")
    app[where] = node

    async def lifetime(_: web.Application) -> AsyncIterator[None]:
        async with node:
            yield

    app.cleanup_ctx.append(lifetime)
    return where
