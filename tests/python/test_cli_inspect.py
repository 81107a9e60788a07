"""`aioraft inspect`: says what is in a data directory, and changes nothing there."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import pytest
import pytest_asyncio

import aioraft
import make_archive
from aioraft._cli._command import Status
from aioraft._cli._report import Report
from test_cli import OPERATIONS, command


def traces(data_dir: pathlib.Path) -> dict[pathlib.Path, tuple[int, int, bytes]]:
    """All that a look must not change: names, times of change, modes, bytes."""
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in (data_dir, *data_dir.rglob("*"))
    }


def looked(data_dir: pathlib.Path, status: Status = Status.OK) -> Any:
    """Return the report of a directory that nobody uses, whose traces must stay."""
    before = traces(data_dir)
    done = command("inspect", "--json", str(data_dir))
    assert before == traces(data_dir)
    assert (done.returncode, done.stderr) == (status, ""), done
    return json.loads(done.stdout)


@pytest_asyncio.fixture
async def data_dir(tmp_path: pathlib.Path) -> pathlib.Path:
    await make_archive.fill(tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.asyncio
async def test_it_says_what_is_there(data_dir: pathlib.Path) -> None:
    report = looked(data_dir)
    assert (report["data_dir"], report["format"], report["locked"], report["damage"]) == (str(data_dir), 1, False, [])
    node, log, hard_state = report["node"], report["log"], report["hard_state"]
    assert (node["id"], node["cluster"], node["boot"], node["stage"]) == (1, "archive", 2, "formed")
    assert re.fullmatch("[0-9a-f]{32}", node["identity"])
    assert (node["founders"], node["peers"]) == ([{"id": 1, "identity": node["identity"]}], [])
    # The first leader's entry is the second, behind the bootstrap; ten commands, a snapshot, one command; the second
    # leader's entry, one command.
    assert (log["first_index"], log["last_index"]) == (11, 15)
    assert log["entries"] == {"application": 4, "no_op": 1, "membership": 0, "unknown": 0}
    assert log["bytes"] == sum(path.stat().st_size for path in (data_dir / "log").iterdir())
    commit = hard_state["commit"]
    assert (hard_state["term"], hard_state["vote"], log["last_term"]) == (3, 1, 3)
    assert 12 <= commit <= 15  # it is noted now and then
    members = {"voters": [1], "learners": [], "voters_outgoing": [], "learners_next": [], "auto_leave": False}
    member = {"id": 1, "identity": node["identity"], "address": None, "metadata": {}}
    assert report["membership"] == {
        "snapshot": {"index": 12, **members},
        "committed": {"index": commit, **members},
        "members": [member],
        "retired": [],
        "incarnation": 0,
    }
    assert [(it["origin"], it["boot"]) for it in report["sessions"]] == [(1, 2 if commit == 15 else 1)]
    assert report["timestamp_ns"] > 0
    (snapshot,) = report["snapshots"]
    assert (snapshot["index"], snapshot["state"], snapshot["named"], snapshot["problem"]) == (12, "whole", True, None)
    assert snapshot["bytes"] == (data_dir / "snapshots" / snapshot["file"]).stat().st_size
    assert report["guard"]["durable_batch"] == report["guard"]["found_batch"] > 0

    said = command("inspect", str(data_dir))
    assert (said.returncode, said.stderr) == (0, "")
    for line in (
        rf"directory +{re.escape(str(data_dir))}: format 1\n",
        r"damage +none was found\n",
        r"node +1 of cluster 'archive', formed, start 2\n",
        rf"identity +{node['identity']}\n",
        rf"hard state +term 3, voted for 1, committed {commit}\n",
        r"log +entries 11 to 15 \(term 3\): 4 application, 1 no-op\n",
        rf"members +voters 1, at entry {commit}\n",
        rf"12 +2 +{snapshot['bytes']} B +in use +{snapshot['file']}\n",
    ):
        assert re.search(line, said.stdout), (line, said.stdout)


@pytest.mark.asyncio
async def test_a_running_nodes_directory_is_said_to_be_in_use_and_read(tmp_path: pathlib.Path) -> None:
    data_dir = tmp_path / "data"

    async def look() -> Any:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "aioraft", "inspect", "--json", str(data_dir), stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, out
        return json.loads(out)

    async with make_archive.node(data_dir, make_archive.Stock()) as node:
        await node.propose(b'["bolt", 1]')
        before = await look()
        assert (before["locked"], before["damage"], before["node"]["boot"]) == (True, [], 1)
        # Under load, with snapshots that take each other's place.
        load = asyncio.create_task(work(node))
        for _ in range(5):
            report = await look()
            assert (report["locked"], report["damage"]) == (True, [])
            assert report["log"]["last_index"] >= before["log"]["last_index"]
            before = report
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
    assert looked(data_dir)["locked"] is False


async def work(node: aioraft.Node[int]) -> None:
    while True:
        await node.propose_many([b'["bolt", 1]'] * 100)
        await node.snapshot()


@pytest.mark.asyncio
async def test_a_node_that_was_killed_left_what_it_had_answered_for(tmp_path: pathlib.Path) -> None:
    data_dir = tmp_path / "data"
    program = f"""
import asyncio, os, pathlib, sys
sys.path.insert(0, {str(make_archive.HERE)!r})
import make_archive
async def main():
    async with make_archive.node(pathlib.Path({str(data_dir)!r}), make_archive.Stock()) as node:
        for _ in range(5):
            await node.propose(b'["bolt", 1]')
        os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == -9
    report = looked(data_dir)
    assert report["damage"] == []
    assert report["log"]["entries"] == {"application": 5, "no_op": 1, "membership": 0, "unknown": 0}


def newest(data_dir: pathlib.Path) -> pathlib.Path:
    return max((data_dir / "log").glob("*.raftlog"))


def cut(data_dir: pathlib.Path) -> None:
    path = newest(data_dir)
    os.truncate(path, path.stat().st_size - 10)


def flip(path: pathlib.Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def snapshot_of(data_dir: pathlib.Path) -> pathlib.Path:
    (path,) = (data_dir / "snapshots").iterdir()
    return path


DAMAGES: dict[str, Callable[[pathlib.Path], None]] = {
    "no guard": lambda data_dir: (data_dir / "guard").unlink(),
    "no format": lambda data_dir: (data_dir / "FORMAT").unlink(),
    "no log": lambda data_dir: shutil.rmtree(data_dir / "log"),
    "a log that lost its end": cut,
    "a log's header": lambda data_dir: flip(newest(data_dir), 3),
    "no snapshot": lambda data_dir: snapshot_of(data_dir).unlink(),
    "a snapshot's head": lambda data_dir: flip(snapshot_of(data_dir), 20),
    "a snapshot's chunk": lambda data_dir: flip(snapshot_of(data_dir), -40),
}


@pytest.mark.parametrize("harm", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.asyncio
async def test_damage_is_said_as_the_node_says_it(harm: Callable[[pathlib.Path], None], data_dir: pathlib.Path) -> None:
    harm(data_dir)
    report = looked(data_dir, Status.UNWELL)
    said = command("inspect", str(data_dir))
    assert (said.returncode, said.stderr) == (Status.UNWELL, "")
    assert re.search(rf"^damage +{re.escape(report['damage'][0])}$", said.stdout, re.MULTILINE)
    with pytest.raises(aioraft.FatalError) as refused:
        async with make_archive.node(data_dir, make_archive.Stock()) as node:
            await asyncio.wait_for(node.wait_stopped(), 30)
    assert report["damage"][0] in str(refused.value)


@pytest.mark.asyncio
async def test_a_log_that_lost_its_end_is_shown_as_far_as_it_goes(data_dir: pathlib.Path) -> None:
    whole = looked(data_dir)
    cut(data_dir)
    report = looked(data_dir, Status.UNWELL)
    assert report["guard"]["found_batch"] < report["guard"]["durable_batch"]
    assert (report["node"], report["snapshots"]) == (whole["node"], whole["snapshots"])
    assert report["membership"]["committed"] is None


def test_what_cannot_be_looked_at_is_said_in_one_sentence(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (
        tmp_path,
        tmp_path / "missing",
        tmp_path / "file",
        tmp_path / "sm\N{LATIN SMALL LETTER O WITH STROKE}r",
    ):
        for arguments in ((), ("--json",)):
            done = command("inspect", *arguments, str(path))
            assert (done.returncode, done.stdout) == (Status.UNREADABLE, "")
            reason = "is no node's data directory: give the path that a node was started with as data_dir"
            assert done.stderr == f"aioraft inspect: {path} {reason}\n"


def looked_as_nobody(data_dir: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Look without the rights of root, whom no mode stops."""
    program = """
import os, shutil, sys  # argparse imports shutil late, and nobody may not be able to read it
from aioraft import _cli
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
sys.exit(_cli.main(["inspect", "--json", sys.argv[1]]))
"""
    arguments = [sys.executable, "-c", program, str(data_dir)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60)


@pytest.mark.asyncio
async def test_it_needs_no_permission_to_write(data_dir: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory() as home:  # pytest's own are closed to others
        pathlib.Path(home).chmod(0o755)
        data_dir = pathlib.Path(shutil.copytree(data_dir, pathlib.Path(home) / "data"))
        for path in (data_dir, *data_dir.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        before = traces(data_dir)
        done = looked_as_nobody(data_dir)
        assert before == traces(data_dir)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["damage"] == []

        (data_dir / "guard").chmod(0)
        done = looked_as_nobody(data_dir)
        assert (done.returncode, done.stdout) == (Status.UNREADABLE, "")
        reason = r"Permission denied \(os error 13\); look at it as the user that runs the node, and check the disk"
        assert re.fullmatch(rf"aioraft inspect: cannot open \S+/guard: {reason}\n", done.stderr)
        for path in (data_dir, *data_dir.rglob("*")):
            path.chmod(0o755)


@pytest.mark.asyncio
async def test_nothing_stays_behind_in_the_place_for_temporary_files(
    data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    scratch = tmp_path / "scratch"

    def look() -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-m", "aioraft", "inspect", str(data_dir)]
        environment = os.environ | {"TMPDIR": str(scratch)}
        return subprocess.run(arguments, capture_output=True, text=True, timeout=60, env=environment)

    done = look()
    assert (done.returncode, done.stdout) == (Status.UNREADABLE, "")
    assert re.search(rf"cannot create {re.escape(str(scratch))}/\S+, .* set TMPDIR to a directory", done.stderr)
    scratch.mkdir()
    done = look()
    assert (done.returncode, done.stderr) == (0, "")
    assert list(scratch.iterdir()) == []


@pytest.mark.asyncio
async def test_an_answer_that_cannot_be_written_is_said(data_dir: pathlib.Path) -> None:
    with pathlib.Path("/dev/full").open("w") as full:
        arguments = [sys.executable, "-m", "aioraft", "inspect", str(data_dir)]
        done = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == Status.UNREADABLE
    assert re.fullmatch(
        r"aioraft: the answer cannot be written: .*No space left.*; give standard output .*\n", done.stderr
    )


def keys_of(kind: Any, prefix: str = "") -> dict[str, Any]:
    """All keys of a TypedDict, through lists and optional ones, as paths."""
    if get_origin(kind) in (types.UnionType, list):
        return {key: hint for part in get_args(kind) for key, hint in keys_of(part, prefix).items()}
    if not is_typeddict(kind):
        return {}
    keys: dict[str, Any] = {}
    for key, hint in get_type_hints(kind).items():
        keys |= {f"{prefix}{key}": hint, **keys_of(hint, f"{prefix}{key}.")}
    return keys


def keys_in(value: Any, prefix: str = "") -> set[str]:
    if isinstance(value, list):
        return {key for item in value for key in keys_in(item, prefix)}
    if not isinstance(value, dict):
        return set()
    return {f"{prefix}{key}" for key in value} | {
        key for name, item in value.items() for key in keys_in(item, f"{prefix}{name}.")
    }


@pytest.mark.asyncio
async def test_the_keys_are_the_documented_ones(raft_cluster: Any, tmp_path: pathlib.Path) -> None:
    async with raft_cluster(3, make_archive.Stock, data_dir=tmp_path) as cluster:
        leader = await cluster.leader()
        await leader.propose(b'["bolt", 1]')
        await leader.snapshot()
        await cluster.wait_agreement()
        number = leader.id
    (data_dir,) = (path.parent for path in tmp_path.rglob("FORMAT") if path.parent.name.endswith(str(number)))
    report = looked(data_dir)
    assert {peer["id"] for peer in report["node"]["peers"]} == {1, 2, 3} - {number}
    assert keys_in(report) == set(keys_of(Report))
    documented = OPERATIONS.read_text()
    for key in keys_of(Report):
        assert f"`{key}`" in documented, key
