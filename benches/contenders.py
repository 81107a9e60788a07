"""What a user could pick: how each is started as three processes on loopback, and what its answer means."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import shlex
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack

from child import Child, agreed_leader

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))

from demo import reserved_addresses as reserved_addresses  # noqa: E402

TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target"))

FSYNCED = "fsynced by a majority"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Three replicas that run, and who of them, or beside them, is given the load."""

    client: Child
    children: Sequence[Child]
    """All of its processes, the client among them."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """One row of the table."""

    name: str
    answer_means: str
    """What is so when a proposal is answered."""
    start: Callable[[pathlib.Path], AbstractAsyncContextManager[Cluster]]
    """In this folder, on the disk that is measured."""
    missing: Callable[[], str | None] = lambda: None
    """What must be installed first."""
    kinds: Sequence[str] = ("propose",)
    """What it can be asked to do; a `read` is linearizable."""
    alarm: str | None = None
    """What it writes to its log when something is wrong with its answers."""


def alone(name: str, *command: str, answer_means: str) -> Contender:
    """A program of one process, which is told its folder last."""

    @contextlib.asynccontextmanager
    async def start(folder: pathlib.Path) -> AsyncIterator[Cluster]:
        async with Child(*command, str(folder), log=folder / "client.log") as client:
            await client.expect("ready")
            yield Cluster(client, [client])

    return Contender(name, answer_means, start)


DISK = alone("append + fdatasync", sys.executable, str(HERE / "disk.py"), answer_means="fsynced on one disk")

PLAIN_FUTURES = alone(
    "plain futures", sys.executable, str(HERE / "plain_futures.py"), answer_means="nothing, it is asyncio alone"
)

BARE_BRIDGE = alone(
    "the bare bridge", sys.executable, str(HERE / "bare_bridge.py"), answer_means="nothing, it has no Raft"
)


def given(text: str) -> Contender:
    """`NAME=COMMAND`: another program, which orders and answers as `bench_node.py`."""
    name, _, command = text.partition("=")
    return alone(name, *shlex.split(command), answer_means="as the command line says")


def aioraft(*, on_follower: bool = False) -> Contender:
    @contextlib.asynccontextmanager
    async def start(folder: pathlib.Path) -> AsyncIterator[Cluster]:
        async with AsyncExitStack() as stack:
            nodes = await aioraft_nodes(stack, folder)
            leader = await agreed_leader(nodes.values())
            client = next(node for number, node in nodes.items() if (number != leader) == on_follower)
            yield Cluster(client, list(nodes.values()))

    return Contender(
        f"aioraft{', on a follower' if on_follower else ''}", FSYNCED, start, kinds=("propose", "propose_many", "read")
    )


def without_python() -> Contender:
    program = TARGET / "release" / "examples" / "without_python"

    @contextlib.asynccontextmanager
    async def start(folder: pathlib.Path) -> AsyncIterator[Cluster]:
        async with AsyncExitStack() as stack:
            members = stack.enter_context(reserved_addresses(3))
            given = ",".join(f"{number}={address}" for number, address in members.items())
            nodes = {}
            for number in members:
                command = (str(program), str(number), given, str(folder / str(number)))
                nodes[number] = await stack.enter_async_context(Child(*command, log=folder / f"{number}.log"))
            await asyncio.gather(*(node.expect("ready") for node in nodes.values()))
            yield Cluster(nodes[await agreed_leader(nodes.values())], list(nodes.values()))

    def missing() -> str | None:
        return None if program.exists() else f"there is no {program}: `make bench-peers` builds it"

    return Contender("aioraft's Rust alone, without Python", FSYNCED, start, missing)


def one_node(*, durable: bool) -> Contender:
    @contextlib.asynccontextmanager
    async def start(folder: pathlib.Path) -> AsyncIterator[Cluster]:
        with reserved_addresses(1) as members:
            async with aioraft_node(1, members, folder, durable=durable) as node:
                await node.expect("ready")
                yield Cluster(node, [node])

    if durable:
        return Contender("one node", "fsynced on one disk", start)
    return Contender("one node in memory", "applied, and on no disk", start)


async def aioraft_nodes(stack: AsyncExitStack, folder: pathlib.Path, *, snapshots: bool = False) -> dict[int, Child]:
    """Three times `bench_node.py`; they are ready."""
    members = stack.enter_context(reserved_addresses(3))
    nodes = {number: aioraft_node(number, members, folder, snapshots=snapshots) for number in members}
    for node in nodes.values():
        await stack.enter_async_context(node)
    await asyncio.gather(*(node.expect("ready") for node in nodes.values()))
    return nodes


def aioraft_node(
    number: int, members: dict[int, str], folder: pathlib.Path, *, durable: bool = True, snapshots: bool = False
) -> Child:
    data_dir = str(folder / str(number)) if durable else ""
    given = (str(number), json.dumps(members), data_dir, *(["snapshots"] if snapshots else []))
    return Child(sys.executable, str(HERE / "bench_node.py"), *given, log=folder / f"{number}.log")


def etcd(connections: int) -> Contender:
    @contextlib.asynccontextmanager
    async def start(folder: pathlib.Path) -> AsyncIterator[Cluster]:
        async with AsyncExitStack() as stack:
            peers = stack.enter_context(reserved_addresses(3))
            clients = stack.enter_context(reserved_addresses(3))
            cluster = ",".join(f"n{number}=http://{address}" for number, address in peers.items())
            children = [
                Child(
                    "etcd",
                    f"--name=n{number}",
                    f"--data-dir={folder / str(number)}",
                    f"--initial-advertise-peer-urls=http://{peers[number]}",
                    f"--listen-peer-urls=http://{peers[number]}",
                    f"--advertise-client-urls=http://{clients[number]}",
                    f"--listen-client-urls=http://{clients[number]}",
                    f"--initial-cluster={cluster}",
                    "--logger=zap",
                    "--log-level=error",
                    log=folder / f"{number}.log",
                )
                for number in peers
            ]
            command = (sys.executable, str(HERE / "etcd_client.py"), str(connections), *clients.values())
            client = Child(*command, log=folder / "client.log")
            for child in (*children, client):
                await stack.enter_async_context(child)
            await client.expect("ready")
            yield Cluster(client, [*children, client])

    name = f"etcd + aetcd, {connections} connection{'s' if connections > 1 else ''}"
    missing = _needs(module="aetcd", program="etcd", package="etcd-server")
    return Contender(name, FSYNCED, start, missing, ("propose", "read"))


def pysyncobj(*, batch: bool) -> Contender:
    @contextlib.asynccontextmanager
    async def start(folder: pathlib.Path) -> AsyncIterator[Cluster]:
        async with AsyncExitStack() as stack:
            members = stack.enter_context(reserved_addresses(3))
            children = {}
            for number, own in members.items():
                others = [address for other, address in members.items() if other != number]
                journal = str(folder / f"{number}.journal")
                command = ("pysyncobj_node.py", journal, "batch" if batch else "single", own, *others)
                child = Child(sys.executable, str(HERE / command[0]), *command[1:], log=folder / f"{number}.log")
                children[int(own.rsplit(":", 1)[1])] = await stack.enter_async_context(child)
            await asyncio.gather(*(child.expect("ready") for child in children.values()))
            leader = await agreed_leader(children.values())
            yield Cluster(children[leader], list(children.values()))

    name = f"PySyncObj, {'batches (its default)' if batch else 'no batches'}"
    means, alarm = "in the page cache of a majority, not fsynced", "state machine may have diverged"
    return Contender(name, means, start, _needs(module="pysyncobj"), alarm=alarm)


def _needs(module: str, program: str | None = None, package: str = "") -> Callable[[], str | None]:
    def missing() -> str | None:
        if program is not None and shutil.which(program) is None:
            return f"there is no {program}: install it (apt install {package})"
        if importlib.util.find_spec(module) is None:
            return f"there is no {module}: run it with `make bench-peers`, which installs it"
        return None

    return missing
