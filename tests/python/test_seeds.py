"""Nodes that find their places by their names: they found a cluster once, join one, resume, and take a lost one's place."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import aioraft
from aioraft._core import AdminClient, recorded
from aioraft._status import Status
from aioraft.testing import TEST_CONFIG
from machines import Adder
from processes import DEADLINE_S, HERE, make_random, reserved_addresses
from waiting import until

pytestmark = pytest.mark.asyncio


class Cluster:
    """Nodes app-0, app-1 and so on, the first three of which are the seeds."""

    def __init__(self, folder: pathlib.Path, addresses: list[str]) -> None:
        self.folder = folder
        self.addresses = addresses
        self.seeds = addresses[:3]
        self._nodes: list[aioraft.Node[int]] = []

    def settings(self, number: int) -> dict[str, Any]:
        return {
            "name": f"app-{number}",
            "seeds": self.seeds,
            "bootstrap_expect": len(self.seeds),
            "advertise": self.addresses[number],
            "data_dir": str(self.directory(number)),
        }

    def directory(self, number: int) -> pathlib.Path:
        return self.folder / f"app-{number}"

    def node(self, number: int, **changes: Any) -> aioraft.Node[int]:
        node: aioraft.Node[int] = aioraft.Node(
            **(self.settings(number) | {"state_machine": Adder(), "config": TEST_CONFIG} | changes)
        )
        self._nodes.append(node)
        return node

    async def start(self, *numbers: int, **changes: Any) -> list[aioraft.Node[int]]:
        nodes = [self.node(number, **changes) for number in numbers]
        await started(*nodes)
        return nodes

    async def clean_up(self) -> None:
        await asyncio.gather(*(node.aclose() for node in self._nodes))


async def started(*nodes: aioraft.Node[int]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(node.start() for node in nodes))


@pytest.fixture
def addresses() -> Iterator[list[str]]:
    with reserved_addresses(5) as found:
        yield list(found.values())


@contextlib.asynccontextmanager
async def clusters(folder: pathlib.Path, addresses: list[str]) -> AsyncIterator[Cluster]:
    cluster = Cluster(folder, addresses)
    try:
        yield cluster
    finally:
        await cluster.clean_up()


def members(node: aioraft.Node[int]) -> dict[int, bool]:
    """Whether each votes."""
    status: Status = node.status()
    return {peer.id: peer.votes for peer in status.peers} | {status.id: status.votes}


async def have_votes(node: aioraft.Node[int], *ids: int) -> None:
    """Wait until these are the members, and all of them vote."""
    await until(lambda: members(node) == dict.fromkeys(ids, True), f"the voters are {ids}")


def names(address: str) -> dict[int, str | None]:
    found = AdminClient(address, cluster="default").members(5.0)
    return {member["id"]: member["metadata"].get("name") for member in found["members"]}


def asks_nobody_any_more() -> bool:
    return not [thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name and thread.is_alive()]


def is_free(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) != 0


# Arguments


RIGHT: dict[str, Any] = {"name": "app-0", "seeds": ["app-0.app:1", "app-1.app:1"], "bootstrap_expect": 2}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"id": 1}, "give the one or the other"),
        ({"members": {1: "a:1"}}, "give the one or the other"),
        ({"name": None}, "name= is missing"),
        ({"seeds": None}, "seeds= is missing"),
        ({"bootstrap_expect": None}, "bootstrap_expect= is missing"),
        ({"name": None, "seeds": None, "bootstrap_expect": None}, "a node needs id= and members=, or else name="),
        ({"name": ""}, "name = '': it must be a text"),
        ({"name": 3}, "name = 3: it must be a text"),
        ({"name": "\udcff"}, "in UTF-8"),
        ({"name": "x" * 254}, "1 to 253 bytes"),
        ({"seeds": "app-0.app:1"}, "it must list the addresses"),
        ({"seeds": []}, "it must list the addresses"),
        ({"seeds": ["app-0.app"]}, "seeds[0] = 'app-0.app' has no port"),
        ({"seeds": ["app-0.app:1", "APP-0.app.:1"]}, "seeds[1] = 'APP-0.app.:1' is listed twice"),
        ({"seeds": ["app-0.app:1", "0.0.0.0:1"]}, "seeds[1]"),
        ({"bootstrap_expect": 0}, "from 1 to 2"),
        ({"bootstrap_expect": 3}, "from 1 to 2"),
        ({"bootstrap_expect": True}, "from 1 to 2"),
        ({"bootstrap_expect": "2"}, "from 1 to 2"),
        ({"name": "app-7"}, "advertise= is missing, and none of the seeds is 'app-7'"),
        ({"advertise": "app-0.app"}, "advertise = 'app-0.app' has no port"),
    ],
)
async def test_wrong_arguments(changes: dict[str, Any], expected: str) -> None:
    machine = Adder()
    with pytest.raises(aioraft.ConfigError) as caught:
        aioraft.Node(**(RIGHT | changes), data_dir=None, state_machine=machine)
    assert expected in str(caught.value)
    aioraft.Node(**RIGHT, data_dir=None, state_machine=machine)  # it is free


async def test_it_has_no_id_before_it_has_a_place() -> None:
    node = aioraft.Node(**RIGHT, data_dir=None, state_machine=Adder())
    with pytest.raises(aioraft.NodeClosedError, match="node 'app-0' is not started"):
        _ = node.id
    assert repr(node) == "<aioraft.Node 'app-0' of 'default': not started>"


async def test_a_directory_of_another_cluster(tmp_path: pathlib.Path, addresses: list[str]) -> None:
    async with clusters(tmp_path, addresses[:1]) as cluster:
        cluster.seeds = addresses[:1]
        (node,) = await cluster.start(0)
        await node.aclose()
        with pytest.raises(aioraft.ConfigError, match=r"belongs to cluster 'default', not to 'other'"):
            await cluster.node(0, cluster="other").start()


async def test_a_directory_that_cannot_be_one_and_one_that_is_damaged(
    tmp_path: pathlib.Path, addresses: list[str]
) -> None:
    async with clusters(tmp_path, addresses[:1]) as cluster:
        cluster.seeds = addresses[:1]
        cluster.directory(0).write_text("a file")
        with pytest.raises(aioraft.ConfigError, match="app-0"):
            await cluster.node(0).start()
        cluster.directory(0).unlink()
        (node,) = await cluster.start(0)
        await node.aclose()
        (cluster.directory(0) / "FORMAT").write_text("aioraft data directory, format 99\n")
        with pytest.raises(aioraft.FatalError, match="upgrade"):
            await cluster.node(0).start()
        assert is_free(addresses[0])


# A cluster's life


async def test_nodes_found_a_cluster_join_it_and_resume(
    tmp_path: pathlib.Path, addresses: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with clusters(tmp_path, addresses) as cluster:
        nodes = await cluster.start(0, 1, 2, 3, 4)
        ids = [node.id for node in nodes]
        assert ids[:3] == [1, 2, 3]
        assert sorted(ids[3:]) == [4, 5]
        assert await nodes[4].propose(b"2") == 2
        await have_votes(nodes[0], 1, 2, 3, 4, 5)

        await nodes[1].aclose()
        shutil.rmtree(cluster.directory(1))
        (nodes[1],) = await cluster.start(1)
        assert nodes[1].id == 6
        await have_votes(nodes[1], 1, 3, 4, 5, 6)
        await until(
            lambda: (
                names(addresses[0])
                == {1: "app-0", 3: "app-2", 6: "app-1"} | dict(zip(ids[3:], ("app-3", "app-4"), strict=True))
            ),
            "each has its name",
        )
        assert await nodes[1].propose(b"3") == 5

        await asyncio.gather(*(node.aclose() for node in nodes))
        again = await cluster.start(0, 1, 2, 3, 4)
        assert [node.id for node in again] == [1, 6, 3, *ids[3:]]
        assert await again[1].propose(b"4") == 9
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == [], "all this is as it should be"


async def test_one_founds_alone_and_others_join(tmp_path: pathlib.Path, addresses: list[str]) -> None:
    async with clusters(tmp_path, addresses) as cluster:
        (first,) = await cluster.start(0, bootstrap_expect=1)
        later = await cluster.start(1, 2, bootstrap_expect=1)
        assert first.id == 1
        assert sorted(node.id for node in later) == [2, 3]
        await have_votes(first, 1, 2, 3)


async def test_nodes_in_memory_come_back_as_new_members(tmp_path: pathlib.Path, addresses: list[str]) -> None:
    async with clusters(tmp_path, addresses) as cluster:
        nodes = await cluster.start(0, 1, 2, data_dir=None)
        assert await nodes[0].propose(b"1") == 1
        await nodes[2].aclose()
        (again,) = await cluster.start(2, data_dir=None)
        assert again.id == 4
        await have_votes(again, 1, 2, 4)
        assert await again.propose(b"1") == 2


async def test_an_id_that_was_given_to_nobody_leaves_when_its_name_votes(
    tmp_path: pathlib.Path, addresses: list[str]
) -> None:
    async with clusters(tmp_path, addresses) as cluster:
        (first, *_) = await cluster.start(0, 1, 2)
        # As one that was killed when it had its place, and had written nothing yet.
        orphan, _ = await asyncio.to_thread(
            AdminClient(addresses[0], cluster="default").join, "app-3", 77, addresses[3], {}, 5.0
        )
        assert orphan == 4
        (later,) = await cluster.start(3)
        assert later.id == 5
        await have_votes(first, 1, 2, 3, 5)


async def test_a_member_without_a_name_is_known_by_its_address(tmp_path: pathlib.Path, addresses: list[str]) -> None:
    """As a founder whose disk is lost before the log knows its name; and a cluster that goes over to names."""
    listed = dict(enumerate(addresses[:3], start=1))
    async with clusters(tmp_path, addresses) as cluster:
        static = [
            aioraft.Node(id=number, members=listed, data_dir=None, state_machine=Adder(), config=TEST_CONFIG)
            for number in listed
        ]
        await started(*static)
        assert await static[0].propose(b"1") == 1
        await static[2].aclose()
        (named,) = await cluster.start(2)
        assert named.id == 4
        await have_votes(named, 1, 2, 4)
        assert await named.propose(b"1") == 2
        await asyncio.gather(*(node.aclose() for node in static))


# What is wrong


async def test_two_live_nodes_of_one_name(
    tmp_path: pathlib.Path, addresses: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with clusters(tmp_path, addresses) as cluster:
        nodes = await cluster.start(0, 1, 2, 3)
        await have_votes(nodes[0], 1, 2, 3, 4)
        second = cluster.node(3, advertise=addresses[4], data_dir=str(tmp_path / "second"))
        starting = asyncio.create_task(second.start())
        await until(lambda: 'node 4 runs under the name "app-3": stop it first' in caplog.text, "it says so")
        assert not starting.done()
        assert members(nodes[0]) == dict.fromkeys((1, 2, 3, 4), True)
        await nodes[3].aclose()
        async with asyncio.timeout(DEADLINE_S):
            await starting
        await have_votes(nodes[0], 1, 2, 3, second.id)


async def test_a_seed_that_cannot_be_looked_up_is_in_nobodys_way(tmp_path: pathlib.Path, addresses: list[str]) -> None:
    async with clusters(tmp_path, addresses) as cluster:
        nodes = await cluster.start(0, 1, 2)
        (later,) = await cluster.start(3, seeds=["nowhere.invalid:1", *addresses[:3]])
        await have_votes(nodes[0], 1, 2, 3, later.id)


async def test_seeds_in_another_order_found_nothing_until_they_are_put_right(
    tmp_path: pathlib.Path, addresses: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with clusters(tmp_path, addresses) as cluster:
        wrong = cluster.node(0, seeds=[addresses[1], addresses[0], addresses[2]])
        others = [cluster.node(1), cluster.node(2)]
        starting = [asyncio.create_task(node.start()) for node in (wrong, *others)]
        await until(lambda: "another node runs under id 2" in caplog.text, "it is said")
        assert not any(task.done() for task in starting)
        await wrong.aclose()
        with pytest.raises(aioraft.NodeClosedError, match="closed"):
            await starting[0]
        (right,) = await cluster.start(0)
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*starting[1:])
        assert [node.id for node in (right, *others)] == [1, 2, 3]
        assert await right.propose(b"1") == 1


async def test_the_seeds_are_of_another_cluster(
    tmp_path: pathlib.Path, addresses: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with clusters(tmp_path, addresses) as cluster:
        await cluster.start(0, bootstrap_expect=1, cluster="shop")
        stranger = cluster.node(3, cluster="stock", seeds=addresses[:1], bootstrap_expect=1)
        starting = asyncio.create_task(stranger.start())
        await until(lambda: 'cluster "stock" was meant' in caplog.text, "it is said")
        (said,) = (record for record in caplog.records if "'app-3' got no place" in record.getMessage())
        assert said.levelno == logging.WARNING
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting


async def test_a_node_without_a_place_says_what_it_waits_for(
    tmp_path: pathlib.Path, addresses: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aioraft._seeds._SAY_EVERY", 0.2)
    async with clusters(tmp_path, addresses) as cluster:
        starting = asyncio.create_task(cluster.node(3).start())
        await until(
            lambda: "'app-3' has no place in cluster 'default' yet, still asking: " in caplog.text, "it is said"
        )
        assert all(seed in caplog.text for seed in cluster.seeds)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting


# The end of a start


@pytest.mark.parametrize("number", [0, 3])  # a founder that waits for the others, and one who would join
@pytest.mark.parametrize("way", ["cancelled", "closed"])
async def test_a_start_that_ends_early_leaves_nothing_open(
    tmp_path: pathlib.Path, addresses: list[str], number: int, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aioraft.node")
    async with clusters(tmp_path, addresses) as cluster:
        node = cluster.node(number)
        starting = asyncio.create_task(node.start())
        if number == 0:
            await until(lambda: not is_free(addresses[0]), "it listens")
        else:
            await until(lambda: "'app-3' got no place" in caplog.text, "it asks")
        if way == "cancelled":
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
        else:
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.gather(node.aclose(), node.aclose())
            with pytest.raises(aioraft.NodeClosedError, match=r"^node ('app-3'|1) was closed while it started$"):
                await starting
        assert is_free(addresses[number])
        await until(asks_nobody_any_more, "nobody is asked any more")
        if (number, way) != (3, "cancelled"):
            with pytest.raises(aioraft.NodeClosedError):
                await node.start()
        # The same place is there for the next one, with whatever was begun.
        nodes = await cluster.start(0, 1, 2)
        assert [one.id for one in nodes] == [1, 2, 3]
        if (number, way) == (3, "cancelled"):
            await started(node)  # it had no place yet
            assert node.id == 4


async def test_starts_that_are_cancelled_at_any_moment(tmp_path: pathlib.Path, addresses: list[str]) -> None:
    random = make_random()
    async with clusters(tmp_path, addresses) as cluster:
        first, *_ = await cluster.start(0, 1, 2)
        for _ in range(10):
            node = cluster.node(3)
            starting = asyncio.create_task(node.start())
            await asyncio.sleep(random.uniform(0, 0.15))  # any moment is meant
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            await node.aclose()
            assert is_free(addresses[3])
        (last,) = await cluster.start(3)
        await until(lambda: list(names(addresses[0]).values()).count("app-3") == 1, "its former ids have left")
        await have_votes(first, 1, 2, 3, last.id)


# Processes that are killed


class Process:
    """One node as a process."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(HERE / "seeded_node.py"),
            json.dumps(self._settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    async def hear(self) -> dict[str, int]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), DEADLINE_S)
        if not line:
            assert self._process.stderr is not None
            raise AssertionError(f"it ended: {(await self._process.stderr.read()).decode()[-3000:]}")
        said: dict[str, int] = json.loads(line)
        return said

    async def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.communicate()
            self._process = None


@contextlib.asynccontextmanager
async def killed_at_last(processes: list[Process]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await asyncio.gather(*(process.kill() for process in processes))


async def test_founders_that_lose_power_at_any_moment_found_one_cluster(
    tmp_path: pathlib.Path, addresses: list[str]
) -> None:
    random = make_random()
    cluster = Cluster(tmp_path, addresses)
    processes = [Process(cluster.settings(number)) for number in range(3)]
    async with killed_at_last(processes):
        for _ in range(6):
            await asyncio.gather(*(process.start() for process in processes))
            await asyncio.sleep(random.uniform(0.1, 0.6))  # any moment is meant
            await asyncio.gather(*(process.kill() for process in processes))
        await asyncio.gather(*(process.start() for process in processes))
        said = [[await process.hear() for _ in range(2)] for process in processes]
        assert [first["id"] for first, _ in said] == [1, 2, 3]
    assert len({tuple(sorted(founders(cluster.directory(number)).items())) for number in range(3)}) == 1


async def test_a_disk_that_is_lost_while_the_founders_meet_never_makes_two_clusters(
    tmp_path: pathlib.Path, addresses: list[str]
) -> None:
    random = make_random()
    for turn in range(3):
        cluster = Cluster(tmp_path / str(turn), addresses)
        cluster.folder.mkdir()
        processes = [Process(cluster.settings(number)) for number in range(3)]
        async with killed_at_last(processes):
            await asyncio.gather(*(process.start() for process in processes))
            await asyncio.sleep(random.uniform(0.2, 0.6))  # any moment is meant
            await asyncio.gather(*(process.kill() for process in processes))
            lost = random.randrange(3)
            shutil.rmtree(cluster.directory(lost), ignore_errors=True)
            stages = [stage(cluster.directory(number)) for number in range(3) if number != lost]
            sys.stdout.write(f"disk {lost} is lost, the others are {stages}\n")
            await asyncio.gather(*(process.start() for process in processes))
            if "prepared" in stages and "formed" not in stages:
                # The others have promised that directory to be the founder's. Nothing was committed: it takes an operator.
                await asyncio.sleep(1)  # time to do wrong in
                assert "formed" not in [stage(cluster.directory(number)) for number in range(3)]
                continue
            heard = await asyncio.gather(*(process.hear() for process in processes))
            assert heard[lost]["id"] == (4 if "formed" in stages else lost + 1)
            await asyncio.gather(*(process.hear() for process in processes))
        formed = [founders(cluster.directory(number)) for number in range(3)]
        assert formed[0] == formed[1] == formed[2]


async def test_a_joiner_that_is_killed_at_any_moment_joins_once(tmp_path: pathlib.Path, addresses: list[str]) -> None:
    random = make_random()
    async with clusters(tmp_path, addresses) as cluster:
        first, *_ = await cluster.start(0, 1, 2)
        joiner = Process(cluster.settings(3))
        async with killed_at_last([joiner]):
            for _ in range(6):
                await joiner.start()
                await asyncio.sleep(random.uniform(0.2, 0.7))  # any moment is meant
                await joiner.kill()
            await joiner.start()
            number = (await joiner.hear())["id"]
            await have_votes(first, 1, 2, 3, number)
            await joiner.hear()


def stage(directory: pathlib.Path) -> str | None:
    found = recorded(str(directory))
    return None if found is None else str(found["stage"])


def founders(directory: pathlib.Path) -> dict[int, str]:
    said = subprocess.run(
        [sys.executable, "-m", "aioraft", "inspect", str(directory), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {one["id"]: one["identity"] for one in json.loads(said.stdout)["node"]["founders"]}
