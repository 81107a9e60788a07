"""Pods without Kubernetes: processes that run examples/kubernetes/app.py as its manifest says.

Each start of a pod has an address of its own on loopback, behind the pod's name, which is resolved anew each time (see
`names_shim.c`).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import pathlib
import random
import re
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from aiohttp import ClientConnectionError, ClientSession, TCPConnector

from aioraft._core import AdminClient
from disks import compile_shim
from processes import DEADLINE_S, FAULT

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "kubernetes"
CLOUDY = re.compile(r" (WARNING|ERROR|CRITICAL) ")


def manifests(file: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((EXAMPLE / file).read_text()))


def stateful_set() -> dict[str, Any]:
    (found,) = (one for one in manifests("statefulset.yaml") if one["kind"] == "StatefulSet")
    return found


class Pod:
    """One pod of the set; its volume outlives it."""

    def __init__(self, pods: Pods, ordinal: int) -> None:
        self.name = f"{pods.spec['serviceName']}-{ordinal}"
        self.volume = pods.folder / self.name
        self.log = pods.folder / f"{self.name}.log"
        self.ip = ""
        self.is_ready = False
        self._pods = pods
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Run it, at an address that it never had before."""
        assert self._process is None
        self.ip = next(self._pods.addresses)
        self.volume.mkdir(exist_ok=True)
        environment = self._pods.environment(self)
        self._pods.publish(self)
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, str(EXAMPLE / "app.py"), env=environment, stdout=log, stderr=log
            )

    async def wait_ready(self) -> None:
        """Probe it as the manifest says until it is ready."""
        path = self._pods.container["readinessProbe"]["httpGet"]["path"]
        async with asyncio.timeout(DEADLINE_S):
            while await self.probe(path) != 200:
                await asyncio.sleep(0.05)
        self.is_ready = True

    async def probe(self, path: str) -> int | None:
        """Its answer's status; None if nobody answers."""
        self.check()
        try:
            async with self._pods.session.get(f"{self.url}{path}") as response:
                return response.status
        except ClientConnectionError:
            return None

    async def end(self) -> None:
        """Have it end as a kubelet does: no Service sends it anything any more, then SIGTERM."""
        assert self._process is not None
        self.is_ready = False
        self._process.send_signal(signal.SIGTERM)
        grace = self._pods.template["terminationGracePeriodSeconds"]
        status = await asyncio.wait_for(self._process.wait(), grace)
        assert status == 0, f"{self.name} ended with {status}; {self._tail()}"
        self._process = None

    async def kill(self) -> None:
        """Its machine fails."""
        assert self._process is not None
        self.is_ready = False
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        self._process = None

    async def stopped(self) -> int:
        """Wait until it has ended by itself; return its exit status."""
        assert self._process is not None
        self.is_ready = False
        status = await asyncio.wait_for(self._process.wait(), DEADLINE_S)
        self._process = None
        return status

    def check(self) -> None:
        """Raise if it has ended by itself."""
        if self._process is not None and self._process.returncode is not None:
            raise AssertionError(f"{self.name} ended with {self._process.returncode}; {self._tail()}")

    @property
    def url(self) -> str:
        return f"http://{self.ip}:{self._pods.http_port}"

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def cloudy(self) -> list[str]:
        """What its log warns of."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if CLOUDY.search(line) or FAULT.search(line)]

    async def members(self) -> dict[int, dict[str, Any]]:
        """Who belongs to the cluster, as far as it knows."""
        client = AdminClient(f"{self.ip}:{self._pods.raft_port}", cluster="kv")
        found: Mapping[str, Any] = await asyncio.to_thread(client.members, 5.0)
        return {member["id"]: member for member in found["members"]}

    async def remove(self, number: int) -> None:
        """`aioraft remove`, called in this pod."""
        client = AdminClient(f"{self.ip}:{self._pods.raft_port}", cluster="kv")
        await asyncio.to_thread(client.change, [("remove", number, "", None)], 10.0)

    def _tail(self) -> str:
        return f"the end of {self.log}:\n{self.log.read_text(errors='replace')[-3000:]}"


class Pods:
    """The pods of the manifest's StatefulSet, by their ordinals."""

    def __init__(
        self, folder: pathlib.Path, session: ClientSession, randomness: random.Random, ports: tuple[int, int]
    ) -> None:
        self.folder = folder
        self.session = session
        self.raft_port, self.http_port = ports
        self.spec = stateful_set()["spec"]
        self.template = self.spec["template"]["spec"]
        (self.container,) = self.template["containers"]
        self.addresses = _addresses(randomness)
        self._all: dict[int, Pod] = {}
        self._names = folder / "names"
        self._published = {"localhost": "127.0.0.1"}
        self._shim = compile_shim("names_shim", folder)

    def __getitem__(self, ordinal: int) -> Pod:
        if ordinal not in self._all:
            self._all[ordinal] = Pod(self, ordinal)
        return self._all[ordinal]

    @property
    def running(self) -> list[Pod]:
        return [pod for pod in self._all.values() if pod.is_running]

    @property
    def ready(self) -> list[Pod]:
        """To whom the Service sends requests."""
        return [pod for pod in self._all.values() if pod.is_ready]

    async def scale(self, replicas: int) -> None:
        """Start the first so many, all at once, and wait until they are ready."""
        assert self.spec["podManagementPolicy"] == "Parallel"
        new = [self[ordinal] for ordinal in range(replicas) if not self[ordinal].is_running]
        await asyncio.gather(*(pod.start() for pod in new))
        await asyncio.gather(*(pod.wait_ready() for pod in new))

    def publish(self, pod: Pod) -> None:
        """Have its name stand for its address, before it is ready (publishNotReadyAddresses)."""
        self._published[f"{pod.name}.{self.spec['serviceName']}"] = pod.ip
        unfinished = self._names.with_suffix(".new")
        unfinished.write_text("".join(f"{name} {address}\n" for name, address in self._published.items()))
        unfinished.rename(self._names)

    def environment(self, pod: Pod) -> dict[str, str]:
        """What the manifest sets for this pod, at the ports of this test."""
        fields = {"metadata.name": pod.name, "status.podIP": pod.ip}
        values: dict[str, str] = {}
        for variable in self.container["env"]:
            text = variable.get("value")
            if text is None:
                text = fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
            values[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda name: values[name[1]], text)
        (mount,) = self.container["volumeMounts"]
        assert values["DATA_DIR"].startswith(f"{mount['mountPath']}/")
        assert values["HTTP_PORT"] == str(self._port("http"))
        raft = f":{self._port('raft')}"
        values = {name: text.replace(raft, f":{self.raft_port}") for name, text in values.items()}
        values["HTTP_PORT"] = str(self.http_port)
        values["DATA_DIR"] = values["DATA_DIR"].replace(mount["mountPath"], str(pod.volume))
        shim = {"LD_PRELOAD": str(self._shim), "AIORAFT_TEST_NAMES": str(self._names)}
        return {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | values | shim

    def _port(self, name: str) -> int:
        (port,) = (port["containerPort"] for port in self.container["ports"] if port["name"] == name)
        return int(port)

    async def lose(self, pod: Pod) -> None:
        """Its machine fails, and its volume with it."""
        await pod.kill()
        shutil.rmtree(pod.volume)

    async def clean_up(self) -> None:
        for pod in self.running:
            await pod.kill()


def make_session() -> ClientSession:
    """For requests each on a connection of its own: a Service chooses a pod for each connection."""
    return ClientSession(connector=TCPConnector(force_close=True))


def _addresses(randomness: random.Random) -> Iterator[str]:
    network = f"127.{randomness.randrange(1, 255)}.{randomness.randrange(256)}"
    return (f"{network}.{host}" for host in itertools.count(1))
