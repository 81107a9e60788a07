"""Disks that fill up, fail, hang and lose what they were given: real processes, and damaged directories of single nodes."""

from __future__ import annotations

import asyncio
import collections
import errno
import functools
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator

import pytest

import aioraft
from disks import Disks, build_shim, can_build_shim, preload
from processes import DEADLINE_S, HERE, Process, make_random, three_processes
from waiting import until

pytestmark = pytest.mark.asyncio

IN_FLIGHT = 8
SLOW_MS = 5000
AT_ONCE = 8  # nodes that are tried out together: each waits for its disk


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    if not can_build_shim():
        pytest.skip("a disk that fails needs Linux and a C compiler")
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def disks(shim: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Disks:
    for name, value in preload(shim, tmp_path).items():
        monkeypatch.setenv(name, value)
    return Disks(tmp_path)


# A disk that fails


FULL = "the disk is full (No space left on device (os error 28)); free some space, then start the node again"
FAILED = "Input/output error (os error 5); check the disk and its permissions, then start the node again"
# Once it runs: the disk's faults, what the node tried, and what it says of it.
FAULTS = {
    "full": ((f"allocate {errno.ENOSPC} 0 *", f"write {errno.ENOSPC} 3000 *"), "write", ".raftlog", FULL),
    "full-in-the-guard": ((f"write {errno.ENOSPC} 0 guard",), "write", "guard", FULL),
    "failed-write": ((f"write {errno.EIO} 1000 raftlog",), "write", ".raftlog", FAILED),
    "failed-fsync": ((f"sync {errno.EIO} 0 raftlog",), "sync", ".raftlog", FAILED),
    "failed-fsync-of-the-guard": ((f"sync {errno.EIO} 0 guard",), "write", "guard", FAILED),
}


@pytest.mark.parametrize("role", ["leader", "follower"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_node_stops_at_its_disks_first_error_and_the_others_go_on(
    tmp_path: pathlib.Path, disks: Disks, fault: str, role: str
) -> None:
    chance = make_random()
    faults, operation, file, sentence = FAULTS[fault]
    async with three_processes(tmp_path, chance.randrange(10**9)) as processes:
        await processes.ask(processes.all, "load", in_flight=IN_FLIGHT)
        await processes.more(processes.all, chance.randrange(1, 200))
        leader = await processes.leader()
        term = leader.leaderships[-1].term
        followers = [process for process in processes.all if process is not leader]
        one = leader if role == "leader" else chance.choice(followers)
        others = [process for process in processes.all if process is not one]

        disks.fail(f"node-{one.number}", *faults)
        await processes.until(lambda: one.stopped is not None, f"node {one.number} to stop")
        said = one.stopped or ""
        assert said.startswith("the log failed, so this node answers no one any more"), said
        assert f"cannot {operation} {tmp_path}/node-{one.number}/" in said, said
        assert f"{file}: {sentence}" in said, said
        assert one.said(said)
        for question in ("propose", "report"):
            await assert_refused(one, question, said)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*one.address)

        await processes.leader(after_term=term if role == "leader" else 0)
        await processes.more(others, chance.randrange(1, 200))
        await one.end()  # in good order: status 0
        disks.mend(f"node-{one.number}")
        await processes.start()
        assert (await one.ask("report"))["status"]["boot"] == 2
        await processes.more(others, 50)
        await processes.stop_load()  # a proposal that failed on one of the others would be seen here
        await processes.assert_counted_once()


async def assert_refused(process: Process, question: str, sentence: str) -> None:
    arguments = {"count": 1} if question == "propose" else {}
    with pytest.raises(AssertionError) as caught:
        await process.ask(question, **arguments)
    assert "FatalError" in str(caught.value)
    assert sentence in str(caught.value)


async def test_nothing_acknowledged_is_lost_when_all_disks_fail_at_once(tmp_path: pathlib.Path, disks: Disks) -> None:
    chance = make_random()
    async with three_processes(tmp_path, chance.randrange(10**9)) as processes:
        await processes.ask(processes.all, "load", in_flight=IN_FLIGHT)
        await processes.more(processes.all, chance.randrange(1, 200))
        for process in processes.all:
            disks.fail(f"node-{process.number}", *chance.choice(list(FAULTS.values()))[0])
        await processes.until(lambda: sum(process.stopped is not None for process in processes.all) >= 2, "two to stop")
        for process in processes.all:  # the third may have had nothing to write since
            await process.kill()
            disks.mend(f"node-{process.number}")
        await processes.start()
        await processes.assert_counted_once()


async def test_room_that_cannot_be_allocated_ahead_costs_nothing(tmp_path: pathlib.Path, disks: Disks) -> None:
    for number in (1, 2, 3):
        disks.fail(f"node-{number}", f"allocate {errno.ENOSPC} 0 *")
    async with three_processes(tmp_path, make_random().randrange(10**9)) as processes:
        for results in await processes.ask(processes.all, "propose", count=200):
            assert results == [1] * 200
        assert disks.was_hit("node-1")
        await processes.assert_counted_once()


# A disk that is slow


# Its clocks are those of a quiet machine: a starved one elects another leader meanwhile.
@pytest.mark.skipif("AIORAFT_SLOW_DISK" not in os.environ, reason="make test-slow-disk runs it, on a quiet machine")
@pytest.mark.parametrize("role", ["leader", "follower"])
async def test_a_slow_disk_costs_the_others_nothing(tmp_path: pathlib.Path, disks: Disks, role: str) -> None:
    chance = make_random()
    async with three_processes(tmp_path, chance.randrange(10**9)) as processes:
        leader = await processes.leader()
        followers = [process for process in processes.all if process is not leader]
        one = leader if role == "leader" else chance.choice(followers)
        others = [process for process in processes.all if process is not one]
        terms = {process.number: process.leaderships[-1] for process in processes.all}
        changes = {process.number: len(process.leaderships) for process in processes.all}

        disks.fail(f"node-{one.number}", f"slow 0 {SLOW_MS} *")
        own = one.asking("propose", count=1)
        await until(lambda: disks.was_hit(f"node-{one.number}"), "an fsync to be under way")
        before = await one.ask("status")
        for results in await processes.ask(others, "propose", count=500):
            assert results == [1] * 500
        # More heartbeats than an election needs to be called would be missing by now, and it says so while it waits.
        await until(lambda: one.said("an fsync of the log has been under way for "), "a warning")
        during = await one.ask("status")
        assert during["fsyncs"] == before["fsyncs"]
        assert during["fsync_max_ns"] < SLOW_MS * 1e6  # all this happened while that one fsync was under way
        assert during["commit"] >= before["commit"] + 1000 or role == "follower"
        disks.mend(f"node-{one.number}")
        assert await own == [1]
        after = await one.ask("report")
        assert after["status"]["fsync_max_ns"] >= SLOW_MS * 1e6
        assert {process.number: process.leaderships[-1] for process in processes.all} == terms
        assert {process.number: len(process.leaderships) for process in processes.all} == changes
        await processes.assert_counted_once()


# A disk that is bad when the node starts


async def open_in_a_process(data_dir: pathlib.Path) -> dict[str, object]:
    """Start a node there, propose 1 once, and return the sum, or the error and its message."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "opening_node.py"), str(data_dir), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        out, errors = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, errors.decode()
    assert b"Traceback" not in errors, errors.decode()
    assert b"panicked" not in errors, errors.decode()
    said: dict[str, object] = json.loads(out)
    return said


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (f"open {errno.EACCES} 0 *", "cannot open {}/LOCK: Permission denied (os error 13); check the disk and"),
        (f"open {errno.EROFS} 0 *", "cannot open {}/LOCK: Read-only file system (os error 30); check the disk and"),
        (f"open {errno.EACCES} 0 raftlog", "1.raftlog: Permission denied (os error 13); check the disk and"),
        (f"read {errno.EIO} 0 raftlog", "cannot open {}/log: Input/output error (os error 5); check the disk and"),
        (f"sync {errno.EIO} 0 raftlog", "cannot sync {}/log/0000000000000001.raftlog: " + FAILED),
        (f"sync {errno.EIO} 0 guard", "cannot write {}/guard: " + FAILED),
        (f"write {errno.EIO} 0 raftlog", "cannot write {}/log/0000000000000001.raftlog: " + FAILED),
        (f"write {errno.ENOSPC} 100 *", "cannot write {}/log/0000000000000001.raftlog: " + FULL),
    ],
)
async def test_a_start_on_a_bad_disk_is_refused_and_harms_nothing(disks: Disks, fault: str, sentence: str) -> None:
    data_dir = disks.folder / "node-1"
    assert await open_in_a_process(data_dir) == {"total": 1}
    disks.fail("node-1", fault)
    said = await open_in_a_process(data_dir)
    assert said["error"] == "FatalError"
    assert sentence.format(data_dir) in str(said["message"]), said
    disks.mend("node-1")
    assert await open_in_a_process(data_dir) == {"total": 2}


@pytest.mark.parametrize(
    "fault",
    [f"open {errno.EACCES} 0 *", f"write {errno.ENOSPC} 0 *", f"write {errno.ENOSPC} 200 *", f"sync {errno.EIO} 0 *"],
)
async def test_a_first_start_on_a_bad_disk_leaves_a_directory_that_can_be_started(disks: Disks, fault: str) -> None:
    disks.fail("node-1", fault)
    said = await open_in_a_process(disks.folder / "node-1")
    assert said["error"] == "FatalError"
    assert str(disks.folder / "node-1") in str(said["message"])
    disks.mend("node-1")
    assert await open_in_a_process(disks.folder / "node-1") == {"total": 1}


@pytest.mark.parametrize("below", ["", "deeper/still"])
async def test_a_file_in_the_place_of_the_directory_is_named(tmp_path: pathlib.Path, below: str) -> None:
    file = tmp_path / "data"
    file.write_text("not a directory")
    with pytest.raises(aioraft.ConfigError) as caught:
        await alone(file / below, Numbers()).start()
    assert str(caught.value) == (
        f"{file} is a file, and a data directory is wanted there: choose another data_dir, or move the file away"
    )
    assert file.read_text() == "not a directory"


# A directory that was damaged while its node was down


QUICK = aioraft.Config(election_timeout=0.02, heartbeat_interval=0.004, close_timeout=1.0)
# Each names the file, and says what was expected and what was found.
REFUSALS = (
    r"(?P<path>\S+) has lost acknowledged writes: batch \d+ was durable, and only \d+ can be read; restore the file, or ",
    r"(?P<path>\S+) is damaged: .+; restore it, or remove this node from the cluster and let a new one take its place",
    r"(?P<path>\S+) is missing although the node has run before, so nobody can tell whether the log is whole: restore ",
    r"(?P<path>\S+) has format \d+, and this aioraft reads formats up to \d+: upgrade this node",
)


class Numbers(aioraft.StateMachine[int]):
    """Keeps what it was given, in order."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def apply(self, entry: aioraft.Entry) -> int:
        self.seen.append(entry.data)
        return len(self.seen)


def alone(data_dir: pathlib.Path, machine: Numbers) -> aioraft.Node[int]:
    members = {1: "127.0.0.1:7401"}
    return aioraft.Node(
        id=1, members=members, data_dir=data_dir, state_machine=machine, listen="127.0.0.1:0", config=QUICK
    )


class Stopped:
    """The directory of a node that has stopped, and what was acknowledged before."""

    def __init__(self, folder: pathlib.Path, acknowledged: list[bytes], guarded: int) -> None:
        self.files = {
            path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }
        self.acknowledged = acknowledged
        self.guarded = guarded  # so many of them are vouched for by the tail guard

    @property
    def newest(self) -> pathlib.Path:
        return max(path for path in self.files if path.suffix == ".raftlog")

    def used(self, path: pathlib.Path) -> int:
        """Without the zeros that are allocated ahead."""
        return len(self.files[path].rstrip(b"\0"))

    def write(self, folder: pathlib.Path, changes: dict[pathlib.Path, bytes | None]) -> None:
        for path, content in (self.files | changes).items():
            if content is not None:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)


async def propose_some(node: aioraft.Node[int], count: int, chance: random.Random) -> list[bytes]:
    """One by one, so that each has a batch of its own in the log."""
    commands = [b"%d " % number + chance.randbytes(chance.choice((5, 100, 1500))) for number in range(count)]
    for command in commands:
        await node.propose(command)
    return commands


async def closed_in_good_order(folder: pathlib.Path, chance: random.Random) -> Stopped:
    acknowledged: list[bytes] = []
    for _ in range(2):
        async with alone(folder, Numbers()) as node:
            acknowledged += await propose_some(node, 10, chance)
    return Stopped(folder, acknowledged, len(acknowledged))


async def killed_at_work(folder: pathlib.Path, chance: random.Random) -> Stopped:
    """As a kill leaves it, with the oldest guard that may be beside it: its last period spans the last commands."""
    before = await closed_in_good_order(folder, chance)
    image = folder.with_name("image")
    async with alone(folder, Numbers()) as node:
        acknowledged = before.acknowledged + await propose_some(node, 10, chance)
        shutil.copytree(folder, image)
    (image / "guard").write_bytes(before.files[pathlib.Path("guard")])
    return Stopped(image, acknowledged, before.guarded)


async def opens_whole_or_is_refused(folder: pathlib.Path, stopped: Stopped) -> str | None:
    """Start a node there; the sentence of its refusal, if it refuses."""
    machine = Numbers()
    try:
        async with alone(folder, machine) as node:
            await node.ready(timeout=DEADLINE_S)
    except aioraft.FatalError as error:
        sentence = str(error)
        found = [match for pattern in REFUSALS if (match := re.search(pattern, sentence))]
        assert found, f"not a refusal that a user understands: {sentence}"
        assert found[0]["path"].startswith(str(folder)), sentence
        return sentence
    held = len(machine.seen)
    assert held >= stopped.guarded, f"lost in silence: {stopped.guarded - held} of what the guard vouches for"
    assert machine.seen == stopped.acknowledged[:held], "other commands than those that were acknowledged"
    return None


def cuts(stopped: Stopped) -> Iterator[tuple[str, dict[pathlib.Path, bytes | None]]]:
    for path, content in stopped.files.items():
        used = stopped.used(path)
        for length in sorted({*range(0, used, max(1, used // 20)), *range(max(0, used - 6), used)}):
            yield f"{path} cut at {length} of {used}", {path: content[:length]}


def flips(stopped: Stopped) -> Iterator[tuple[str, dict[pathlib.Path, bytes | None]]]:
    for path, content in stopped.files.items():
        used = stopped.used(path)
        for at in sorted({*range(0, used, max(1, used // 40)), *range(max(0, used - 12), used)}):
            flipped = bytearray(content)
            flipped[at] ^= 1 << at % 8
            yield f"{path} flipped at {at} of {used}", {path: bytes(flipped)}


def zeroed(stopped: Stopped) -> Iterator[tuple[str, dict[pathlib.Path, bytes | None]]]:
    for path, content in stopped.files.items():
        used = stopped.used(path)
        yield f"{path} with zeros behind it", {path: content + bytes(4096)}
        for length in range(0, used, max(1, used // 12)):
            yield f"{path} zero from {length} of {used}", {path: content[:length] + bytes(len(content) - length)}


def deleted(stopped: Stopped) -> Iterator[tuple[str, dict[pathlib.Path, bytes | None]]]:
    for path in stopped.files:
        yield f"{path} deleted", {path: None}
    yield "the log deleted", {path: None for path in stopped.files if path.parts[0] == "log"}


@pytest.mark.parametrize("damage", [cuts, flips, zeroed, deleted], ids=lambda damage: str(damage.__name__))
@pytest.mark.parametrize("stop", [closed_in_good_order, killed_at_work], ids=lambda stop: str(stop.__name__))
async def test_a_damaged_directory_opens_whole_or_is_refused(
    tmp_path: pathlib.Path,
    stop: Callable[[pathlib.Path, random.Random], Awaitable[Stopped]],
    damage: Callable[[Stopped], Iterator[tuple[str, dict[pathlib.Path, bytes | None]]]],
) -> None:
    stopped = await stop(tmp_path / "data", make_random())
    outcomes: collections.Counter[bool] = collections.Counter()

    async def try_out(number: int, what: str, changes: dict[pathlib.Path, bytes | None]) -> None:
        folder = tmp_path / str(number)
        stopped.write(folder, changes)
        try:
            refusal = await opens_whole_or_is_refused(folder, stopped)
        except AssertionError as error:
            raise AssertionError(f"{what}: {error}") from error
        sys.stdout.write(f"{what}: {refusal or 'opened'}\n")
        outcomes[refusal is None] += 1
        shutil.rmtree(folder)

    damages = list(enumerate(damage(stopped)))
    for at in range(0, len(damages), AT_ONCE):
        await asyncio.gather(
            *(try_out(number, what, changes) for number, (what, changes) in damages[at : at + AT_ONCE])
        )
    sys.stdout.write(f"{outcomes[True]} opened, {outcomes[False]} were refused\n")
    assert outcomes[False]


async def test_an_older_copy_of_the_directory_is_refused_by_the_others(tmp_path: pathlib.Path) -> None:
    chance = make_random()
    async with three_processes(tmp_path, chance.randrange(10**9)) as processes:
        leader = await processes.leader()
        one = chance.choice([process for process in processes.all if process is not leader])
        others = [process for process in processes.all if process is not one]
        await processes.ask(processes.all, "propose", count=50)
        data_dir = tmp_path / f"node-{one.number}"
        await one.close()
        shutil.copytree(data_dir, tmp_path / "older")
        for _ in range(2):
            await processes.start()
            await processes.ask(processes.all, "propose", count=50)
            await one.close()

        data_dir.rename(tmp_path / "newest")
        (tmp_path / "older").rename(data_dir)
        await one.start()
        sentence = f"node {one.number} comes with boot 2, but boot 3 was seen of it: its data directory was rolled back or copied"
        for process in processes.all:  # it says so on both sides
            await until(functools.partial(process.said, sentence), f"node {process.number} to refuse it")
        await processes.ask(others, "propose", count=50)
        assert (await one.ask("status"))["commit"] < (await others[0].ask("status"))["commit"]
        await one.kill()

        shutil.rmtree(data_dir)
        (tmp_path / "newest").rename(data_dir)
        await processes.start()
        await processes.assert_counted_once()
