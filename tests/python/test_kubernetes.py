"""The example for Kubernetes: its manifests follow the schemas, and its pods do what they promise.

The pods are processes that run the example's program with what the manifest says, under addresses that change.
"""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import re
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it has no types
import pytest
import pytest_asyncio
from aiohttp import ClientConnectorError

from disks import can_build_shim
from pods import Pod, Pods, make_session, manifests, stateful_set
from processes import DEADLINE_S, make_random

FILES = ("statefulset.yaml", "networkpolicy.yaml")
OLDEST = "1.32"
"""Of Kubernetes, for which the manifests are checked, besides the newest whose schemas are here."""
EXPECTED = re.compile(
    r"without TLS \(insecure=True\)"  # as the manifest says
    r"|connection to node \d+ lost"  # of a pod that ends
    r"|the cluster is not formed yet"  # on a machine that takes its time
    r"|an fsync of the log has been under way"  # and whose disk others use as well
)
"""What a pod's log may warn of. Where nothing was killed, nothing is lost, either."""


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("file", FILES)
def test_the_manifests_follow_the_schemas(file: str, version: str) -> None:
    for manifest in manifests(file):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_find_what_is_wrong() -> None:
    wrong = stateful_set()
    wrong["spec"]["podManagmentPolicy"] = wrong["spec"].pop("podManagementPolicy")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, OLDEST, strict=True)


def test_the_manifests_fit_each_other() -> None:
    services = {
        one["metadata"]["name"]: one["spec"] for one in manifests("statefulset.yaml") if one["kind"] == "Service"
    }
    spec = stateful_set()["spec"]
    labels = spec["template"]["metadata"]["labels"]
    (container,) = spec["template"]["spec"]["containers"]
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    headless = services[spec["serviceName"]]
    assert (headless["clusterIP"], headless["publishNotReadyAddresses"]) == ("None", True)
    for selector in (*(one["selector"] for one in services.values()), spec["selector"]["matchLabels"]):
        assert selector.items() <= labels.items()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    expect = int(environment["BOOTSTRAP_EXPECT"])
    assert expect == spec["replicas"]
    seeds = [f"{spec['serviceName']}-{ordinal}.{spec['serviceName']}:{ports['raft']}" for ordinal in range(expect)]
    assert environment["SEEDS"].split(",") == seeds
    assert [container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")] == [
        "/readyz",
        "/healthz",
    ]
    (policy,) = manifests("networkpolicy.yaml")
    to_pods, to_all = policy["spec"]["ingress"]
    assert [port["port"] for port in to_pods["ports"]] == [ports["raft"]]
    assert to_pods["from"] == [{"podSelector": {"matchLabels": spec["selector"]["matchLabels"]}}]
    assert [port["port"] for port in to_all["ports"]] == [ports["http"]]


# The pods


@pytest_asyncio.fixture
async def pods(tmp_path: pathlib.Path) -> AsyncIterator[Pods]:
    if not can_build_shim():
        pytest.skip("names that are resolved anew need Linux and a C compiler")
    with contextlib.ExitStack() as stack:
        # While they are held, the system gives these ports to nobody.
        held = [stack.enter_context(socket.socket()) for _ in range(2)]
        for one in held:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", 0))
        ports = (held[0].getsockname()[1], held[1].getsockname()[1])
        async with make_session() as session:
            pods = Pods(tmp_path, session, make_random(), ports)
            try:
                yield pods
            finally:
                await pods.clean_up()


class Clients:
    """Clients that write without a pause, through whichever pods are ready."""

    def __init__(self, pods: Pods) -> None:
        self.written: dict[str, str] = {}
        self.failed: list[str] = []
        self._pods = pods
        self._is_over = False

    @contextlib.asynccontextmanager
    async def at_work(self, count: int) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            for client in range(count):
                tasks.create_task(self._work(client))
            yield
            self._is_over = True

    async def more(self, count: int) -> None:
        """Wait for so many more answers."""
        goal = len(self.written) + count
        async with asyncio.timeout(DEADLINE_S):
            while len(self.written) < goal:
                await asyncio.sleep(0.01)

    async def _work(self, client: int) -> None:
        number = 0
        while not self._is_over:
            ready = self._pods.ready
            pod = ready[number % len(ready)]
            key, value = f"{client}.{number}", f"value {number}"
            try:
                async with self._pods.session.put(f"{pod.url}/keys/{key}", data=value) as response:
                    if response.status != 200:
                        self.failed.append(f"{key} through {pod.name}: {response.status} {await response.text()}")
            except ClientConnectorError:
                continue  # a Service may send a connection to a pod that has just gone; nothing was asked
            self.written[key] = value
            number += 1

    async def check(self) -> None:
        """Every write is there, on every pod."""
        assert not self.failed
        for pod in self._pods.ready:
            for key in list(self.written)[:: max(1, len(self.written) // 20)]:
                async with self._pods.session.get(f"{pod.url}/keys/{key}") as response:
                    assert await response.text() == self.written[key]


async def settled(pod: Pod, done: Callable[[dict[int, dict[str, Any]]], bool]) -> dict[int, dict[str, Any]]:
    """Wait until the members are as they should be."""
    async with asyncio.timeout(DEADLINE_S):
        while not done(members := await pod.members()):
            await asyncio.sleep(0.05)
    return members


def votes(count: int) -> Callable[[dict[int, dict[str, Any]]], bool]:
    """So many members, each of which votes and has its name."""

    def are_there(members: dict[int, dict[str, Any]]) -> bool:
        named = {member["metadata"].get("name") for member in members.values() if member["votes"]}
        return len(members) == count and len(named - {None}) == count

    return are_there


def id_of(name: str, members: dict[int, dict[str, Any]]) -> int:
    (number,) = (number for number, member in members.items() if member["metadata"]["name"] == name)
    return number


def warned(pods: Pods) -> dict[str, list[str]]:
    """What the pods' logs warn of, beyond what belongs to it."""
    found = {
        pod.name: [line for line in pod.cloudy() if not EXPECTED.search(line)]
        for pod in map(pods.__getitem__, range(5))
    }
    return {name: lines for name, lines in found.items() if lines}


@pytest.mark.asyncio
async def test_the_pods_found_grow_restart_and_lose_a_volume(pods: Pods) -> None:
    await pods.scale(3)
    members = await settled(pods[0], votes(3))
    assert sorted(members) == [1, 2, 3]
    clients = Clients(pods)
    async with clients.at_work(3):
        await clients.more(50)
        await pods.scale(5)
        members = await settled(pods[0], votes(5))
        # A rolling update: the highest first, each at another address, the next one when it is ready.
        for ordinal in reversed(range(5)):
            await clients.more(20)
            before = pods[ordinal].ip
            await pods[ordinal].end()
            await pods[ordinal].start()
            await pods[ordinal].wait_ready()
            assert pods[ordinal].ip != before
        assert sorted(await settled(pods[0], votes(5))) == sorted(members), "nobody became somebody else"
        await clients.more(50)
    await clients.check()
    assert warned(pods) == {}

    lost = id_of("kv-1", members)
    await pods.lose(pods[1])
    await pods[1].start()
    await pods[1].wait_ready()
    members = await settled(pods[0], lambda members: votes(5)(members) and lost not in members)
    assert id_of("kv-1", members) > max(1, 2, 3, 4, 5)
    await clients.check()
    assert warned(pods) == {}


@pytest.mark.asyncio
async def test_pods_without_a_quorum_are_alive_and_not_ready(pods: Pods) -> None:
    await pods[0].start()
    async with asyncio.timeout(DEADLINE_S):
        while await pods[0].probe("/healthz") != 200:
            await asyncio.sleep(0.05)
    assert await pods[0].probe("/readyz") == 503, "the others are not there"
    await pods.scale(3)
    await pods[0].wait_ready()
    await pods[1].kill()
    await pods[2].kill()
    async with asyncio.timeout(DEADLINE_S):
        while await pods[0].probe("/readyz") == 200:
            await asyncio.sleep(0.05)
    assert await pods[0].probe("/healthz") == 200
    await pods.scale(3)
    await pods[0].wait_ready()


@pytest.mark.asyncio
async def test_a_pod_is_told_to_end_while_it_waits_for_the_others(pods: Pods) -> None:
    await pods[0].start()
    async with asyncio.timeout(DEADLINE_S):
        while await pods[0].probe("/healthz") != 200:
            await asyncio.sleep(0.05)
    await pods[0].end()


@pytest.mark.asyncio
async def test_a_pod_that_is_scaled_away_is_removed_first(pods: Pods) -> None:
    await pods.scale(4)
    members = await settled(pods[0], votes(4))
    await pods[0].remove(id_of("kv-3", members))
    assert await pods[3].stopped() == 1
    assert "removed from its cluster" in pods[3].log.read_text()
    assert len(await settled(pods[0], votes(3))) == 3
