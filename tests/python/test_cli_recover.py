"""`aioraft recover`: a cluster whose quorum is lost for good goes on from one directory."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

import aioraft
from aioraft._cli._command import Status
from test_cli import OPERATIONS, command


class Adder(aioraft.StateMachine[int]):
    def __init__(self) -> None:
        self.total = 0

    def apply(self, entry: aioraft.Entry) -> int:
        self.total += int(entry.data)
        return self.total

    def snapshot(self) -> bytes:
        return str(self.total).encode()

    def restore(self, data: bytes) -> None:
        self.total = int(data)


async def three(raft_cluster: Any, path: pathlib.Path) -> dict[int, str]:
    """Run a cluster of three that has added up to 55, and return where its nodes were."""
    async with raft_cluster(3, Adder, data_dir=path) as cluster:
        leader = await cluster.leader()
        for number in range(1, 11):
            await leader.propose(b"%d" % number)
        await cluster.wait_agreement()
        return {node.id: node.address for node in cluster.nodes}


def directory(path: pathlib.Path, number: int) -> pathlib.Path:
    return path / f"node-{number}"


@pytest.mark.asyncio
@pytest.mark.parametrize("compacted", [False, True])
async def test_one_node_goes_on_with_all_that_it_has(
    raft_cluster: Any, tmp_path: pathlib.Path, compacted: bool
) -> None:
    members = await three(raft_cluster, tmp_path)
    data = directory(tmp_path, 2)
    if compacted:
        async with raft_cluster(3, Adder, data_dir=tmp_path) as cluster:
            (await cluster.leader())
            await next(node for node in cluster.nodes if node.id == 2).snapshot()
            members = {node.id: node.address for node in cluster.nodes}
    done = command("recover", "--yes", "--json", str(data))
    assert (done.returncode, done.stderr) == (Status.OK, ""), done
    report = json.loads(done.stdout)
    assert (report["id"], report["lost"]) == (2, [1, 3])
    assert report["commit"] <= report["last_index"]
    assert report["last_wall_ns"] is None or report["last_wall_ns"] > 1e18
    looked = json.loads(command("inspect", "--json", str(data)).stdout)
    assert (looked["damage"], looked["membership"]["committed"]["voters"]) == ([], [2])
    assert (looked["membership"]["retired"], looked["membership"]["incarnation"]) == (
        [[1, 1], [3, 3], [67, 67]],
        (1 << 32) + 1,
    )
    kept = json.loads(command("inspect", "--json", report["copy"]).stdout)
    assert (kept["damage"], kept["membership"]["committed"]["voters"]) == ([], [1, 2, 3])

    machine = Adder()
    node = aioraft.Node(id=2, members=members, data_dir=data, state_machine=machine, cluster=looked["node"]["cluster"])
    async with node:
        await node.ready(timeout=20)
        assert machine.total == 55
        assert await node.propose(b"1") == 56
        # Who was left behind learns of it, and stops.
        old = aioraft.Node(
            id=3,
            members=members,
            data_dir=directory(tmp_path, 3),
            state_machine=Adder(),
            cluster=looked["node"]["cluster"],
        )
        async with old:
            with pytest.raises(aioraft.SupersededError, match="recovered without it"):
                await old.wait_stopped()


@pytest.mark.asyncio
async def test_it_says_what_may_be_lost_and_asks(raft_cluster: Any, tmp_path: pathlib.Path) -> None:
    await three(raft_cluster, tmp_path)
    data = directory(tmp_path, 1)
    (cluster,) = (json.loads(command("inspect", "--json", str(data)).stdout)["node"]["cluster"],)

    def asked(answer: str) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-m", "aioraft", "recover", str(data)]
        return subprocess.run(arguments, input=answer, capture_output=True, text=True, timeout=60, check=False)

    for answer in ("", "yes\n"):
        said = asked(answer)
        assert said.returncode == Status.REFUSED, said
        assert "nothing was changed" in said.stderr
        assert "may be lost" in said.stdout
        assert "the nodes 2, 3 are out for good" in said.stdout
    assert json.loads(command("inspect", "--json", str(data)).stdout)["membership"]["committed"]["voters"] == [1, 2, 3]
    said = asked(f"{cluster}\n")
    assert (said.returncode, said.stderr) == (Status.OK, "")
    assert "the only member" in said.stdout
    again = command("recover", "--yes", str(data))
    assert again.returncode == Status.UNREADABLE
    assert "only member" in again.stderr


def test_what_is_no_data_directory_is_left_alone(tmp_path: pathlib.Path) -> None:
    said = command("recover", "--yes", str(tmp_path))
    assert said.returncode == Status.UNREADABLE
    assert "no node's data directory" in said.stderr
    assert list(tmp_path.iterdir()) == []
    assert command("recover", "--json", str(tmp_path)).returncode == Status.USAGE


@pytest.mark.asyncio
async def test_a_directory_in_use_is_left_alone(raft_cluster: Any, tmp_path: pathlib.Path) -> None:
    async with raft_cluster(3, Adder, data_dir=tmp_path) as cluster:
        await cluster.leader()
        said = command("recover", "--yes", str(directory(tmp_path, 1)))
        assert said.returncode == Status.UNREADABLE
        assert "a node runs in" in said.stderr
        assert "stop it" in said.stderr


def test_the_documentation_names_its_keys() -> None:
    text = OPERATIONS.read_text()
    for key in ("lost", "commit", "last_index", "last_term", "last_wall_ns", "copy"):
        assert f"`{key}`" in text
