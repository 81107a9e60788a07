"""`aioraft status`, `members`, `transfer` and `snapshot`: what they say of running nodes, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import aioraft
from aioraft import _cli, _core
from aioraft._admin import AdminError
from aioraft._cli import _table
from aioraft._cli._answers import Members, NodeStatus
from aioraft._cli._command import Status
from aioraft.testing import TEST_CONFIG
from aioraft.testing.plugin import RaftCluster
from machines import Adder
from processes import make_random, three_of_kind, three_processes
from test_cli import OPERATIONS, command
from test_cli_inspect import keys_in, keys_of
from test_snapshots_processes import Snapshotting

pytestmark = pytest.mark.asyncio

CLUSTER = ("--cluster", "aioraft.testing")
DEADLINE_S = 30.0


class Stock(Adder):
    """Has snapshots, which wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()
        self.let_go.set()
        self.is_waiting = threading.Event()

    def snapshot(self) -> Any:
        total = str(self.total).encode()

        def serialise() -> bytes:
            self.is_waiting.set()
            self.let_go.wait(DEADLINE_S)
            return total

        return serialise

    def restore(self, data: bytes) -> None:
        self.total = int(data)


async def run(*arguments: str, cluster: tuple[str, ...] = CLUSTER) -> subprocess.CompletedProcess[str]:
    """Run a command beside the nodes of this process."""
    return await asyncio.to_thread(command, *arguments, *cluster)


async def said(*arguments: str, status: Status = Status.OK) -> str:
    done = await run(*arguments)
    assert (done.returncode, done.stderr) == (status, ""), done
    return done.stdout


async def as_json(*arguments: str, status: Status = Status.OK) -> Any:
    return json.loads(await said(*arguments, "--json", status=status))


async def complaint(*arguments: str, status: Status, cluster: tuple[str, ...] = CLUSTER) -> str:
    """Run what fails with that status; return the sentence."""
    done = await run(*arguments, cluster=cluster)
    assert (done.returncode, done.stdout) == (status, ""), done
    assert done.stderr.startswith(f"aioraft {arguments[0]}: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    """An address at which nobody listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{reserved.getsockname()[1]}"


def followers(cluster: Any, leader: aioraft.Node[Any]) -> list[aioraft.Node[Any]]:
    return [node for node in cluster.nodes if node.id != leader.id]


# What is said


async def test_status_says_how_any_node_is(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(3, Stock) as cluster:
        leader = await cluster.leader()
        await leader.propose(b"5")
        index = await leader.snapshot()
        await cluster.wait_agreement()
        for node in cluster.nodes:
            found = await as_json("status", "--node", node.address)
            status = node.status()
            leads = node.id == leader.id
            assert (found["id"], found["cluster"], found["address"]) == (node.id, CLUSTER[1], node.address)
            assert found["version"] == aioraft.__version__
            assert (found["role"], found["leader"]) == ("leader" if leads else "follower", leader.id)
            assert (found["term"], found["boot"], found["trouble"]) == (status.term, 1, None)
            assert found["commit"] == found["applied"] == found["python_applied"] == status.applied
            assert found["snapshot_index"] == (index if leads else 0)
            assert {peer["id"] for peer in found["peers"]} == {1, 2, 3} - {node.id}
            for peer in found["peers"]:
                assert (peer["connected"], peer["trouble"]) == (True, None)
                assert (peer["matched"] is not None, peer["state"] is not None) == (leads, leads)
        table = await said("status", "--node", leader.address)
        for line in (
            rf"node +{leader.id} of cluster 'aioraft\.testing' at {re.escape(leader.address)}, started 1 time\n",
            rf"role +leader in term {leader.status().term}\n",
            rf"committed through {leader.status().commit}, applied through {leader.status().applied}\n",
            rf"snapshot +of entry {index}, \d+ B\n",
            r"peers +node +address +holds +sent as +connection\n",
            r" up\n",
        ):
            assert re.search(line, table), (line, table)
        (other, _) = followers(cluster, leader)
        table = await said("status", "--node", other.address)
        assert f"follower in term {other.status().term}; node {leader.id} leads\n" in table
        assert re.search(r"snapshot +none yet\n", table)


async def test_members_says_who_they_are(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(3, Adder) as cluster:
        leader = await cluster.leader()
        found = [await as_json("members", "--node", node.address) for node in cluster.nodes]
        assert found[0] == found[1] == found[2]
        assert found[0]["leader"] == leader.id
        for node, member in zip(cluster.nodes, found[0]["members"], strict=True):
            assert (member["id"], member["address"]) == (node.id, node.address)
            assert (member["votes"], member["connected"]) == (True, True)
            assert re.fullmatch("[0-9a-f]{32}", member["identity"])
        lines = (await said("members", "--node", leader.address)).splitlines()
        assert lines[0].split() == ["node", "address", "role", "connection", "identity"]
        rows = {line.split()[0]: line.split()[2] for line in lines[1:]}
        assert rows == {str(node.id): "leader" if node.id == leader.id else "voter" for node in cluster.nodes}


async def test_the_keys_are_the_documented_ones(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(2, Adder) as cluster:
        leader = await cluster.leader()
        documented = OPERATIONS.read_text()
        for name, kind in (("status", NodeStatus), ("members", Members)):
            assert keys_in(await as_json(name, "--node", leader.address)) == set(keys_of(kind))
            for key in keys_of(kind):
                assert f"`{key}`" in documented, key


async def test_a_node_without_a_leader_is_unwell_and_says_what_is_missing(tmp_path: pathlib.Path) -> None:
    with nobody() as missing, socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{own.getsockname()[1]}"
        members = {1: address, 2: missing}
        node = aioraft.Node(
            id=1, members=members, data_dir=tmp_path, state_machine=Adder(), listen=own, config=TEST_CONFIG
        )
        async with node:
            done = await run("status", "--node", address, cluster=())
            assert (done.returncode, done.stderr) == (Status.UNWELL, "")
            assert re.search(r"role +forming in term 1; no leader is known\n", done.stdout)
            assert re.search(rf"trouble +.*missing: node 2: connecting to {missing} failed", done.stdout)
            said = await complaint("transfer", "--node", address, status=Status.REFUSED, cluster=())
            assert "node 1 knows of no leader" in said
            assert "wait for one" in said


# What is done


async def test_transfer_asks_the_leader_whichever_node_is_named(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(3, Adder) as cluster:
        leader = await cluster.leader()
        first, second = followers(cluster, leader)
        assert await said("transfer", str(first.id), "--node", second.address) == f"node {first.id} leads\n"
        assert (await cluster.leader()).id == first.id
        assert await as_json("transfer", str(second.id), "--node", leader.address) == {"leader": second.id}
        # Whom it takes is up to the leader.
        anybody = await as_json("transfer", "--node", second.address)
        assert anybody["leader"] in {1, 2, 3} - {second.id}
        refused = await complaint("transfer", "9", "--node", second.address, status=Status.REFUSED)
        assert "node 9 is no voting member: name one of [1, 2, 3]" in refused


async def test_a_leader_is_followed_a_few_times_and_named_where_it_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: dict[str, AdminError | int] = {}
    asked: list[str] = []

    class Client:
        def __init__(self, address: str, *, cluster: str) -> None:
            self._address = address

        def transfer_leader(self, to: int | None, timeout: float) -> int:
            asked.append(self._address)
            answer = answers[self._address]
            if isinstance(answer, AdminError):
                raise answer
            return answer

    monkeypatch.setattr(_core, "AdminClient", Client)
    answers |= {
        "a:1": AdminError("node 1 does not lead: ask node 2 at b:2, which does", "not-leader", 2, "b:2"),
        "b:2": AdminError("node 2 takes commands of operators only from its own machine", "turned-away"),
    }
    assert _cli.main(["transfer", "--node", "a:1"]) == Status.UNREACHABLE
    complaint = capsys.readouterr().err
    assert "ask node 2 at b:2" in complaint
    assert "only from its own machine" in complaint
    # Two that take each other for the leader.
    answers["b:2"] = AdminError("ask node 1", "not-leader", 1, "a:1")
    asked.clear()
    assert _cli.main(["transfer", "--node", "a:1,b:2"]) == Status.REFUSED
    assert asked == ["a:1", "b:2", "a:1", "b:2"]
    # What may have been done is not asked for elsewhere.
    for kind, status in (("lost", Status.UNKNOWN), ("unknown", Status.UNKNOWN), ("timed-out", Status.LATE)):
        answers |= {"a:1": AdminError("it is unclear", kind), "b:2": 2}  # type: ignore[arg-type]
        asked.clear()
        assert _cli.main(["transfer", "--node", "a:1,b:2"]) == status
        assert asked == ["a:1"]
    answers["a:1"] = AdminError("nobody is there", "unreachable")
    assert _cli.main(["transfer", "--node", "a:1,b:2"]) == Status.OK
    assert _cli.main(["transfer", "3", "--node", "a:1,b:2"]) == Status.REFUSED
    assert "node 2 leads, not node 3" in capsys.readouterr().err


async def test_a_table_cannot_command_a_terminal() -> None:
    (line,) = _table.columns([(1, "a\x1b[2Jb\nc", "ä")])
    assert line == "1  a\\x1b[2Jb\\nc  ä"
    assert _table.sections([("one", ["a\rb"])]) == "one  a\\rb\n"


async def test_snapshot_is_taken_on_the_node_that_is_asked(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(2, Stock) as cluster:
        leader = await cluster.leader()
        await leader.propose(b"5")
        await cluster.wait_agreement()
        (other,) = followers(cluster, leader)
        found = await as_json("snapshot", "--node", other.address)
        assert found == {"index": other.status().snapshot_index}
        assert found["index"] == other.status().applied
        assert leader.status().snapshot_index == 0
        assert f"a snapshot of entry {found['index']} is on" in await said("snapshot", "--node", other.address)


async def test_a_state_machine_without_snapshots_says_so(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(1, Adder) as cluster:
        leader = await cluster.leader()
        refused = await complaint("snapshot", "--node", leader.address, status=Status.REFUSED)
        assert "no snapshot()" in refused


async def test_what_takes_too_long_is_late_and_goes_on(raft_cluster: RaftCluster) -> None:
    machine = Stock()
    async with raft_cluster(1, lambda: machine) as cluster:
        leader = await cluster.leader()
        await leader.propose(b"5")
        machine.let_go.clear()
        late = await complaint("snapshot", "--node", leader.address, "--timeout", "0.3", status=Status.LATE)
        assert "still being taken" in late
        assert await leader.propose(b"1") == 6
        machine.let_go.set()
        assert (await as_json("snapshot", "--node", leader.address))["index"] == leader.status().snapshot_index


@pytest.mark.parametrize("end", ["crash", "close"])
async def test_what_was_under_way_when_the_node_ended_may_have_been_done(raft_cluster: RaftCluster, end: str) -> None:
    machine = Stock()
    async with raft_cluster(1, lambda: machine) as cluster:
        leader = await cluster.leader()
        await leader.propose(b"5")
        machine.let_go.clear()
        calling = asyncio.create_task(
            complaint("snapshot", "--node", leader.address, "--node", leader.address, status=Status.UNKNOWN)
        )
        assert await asyncio.to_thread(machine.is_waiting.wait, DEADLINE_S)
        if end == "crash":
            await cluster.crash(leader.id)
        else:
            await leader.aclose()
        unknown = await calling
        machine.let_go.set()
        assert ("no answer came" if end == "crash" else "look before you try again") in unknown


# Which node is asked


async def test_the_first_node_that_can_be_asked_is(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(1, Adder) as cluster:
        leader = await cluster.leader()
        with nobody() as missing:
            for nodes in ((f"{missing}, {leader.address}",), (missing, "--node", leader.address)):
                assert (await as_json("status", "--node", *nodes))["id"] == 1
            refused = await complaint("status", "--node", missing, status=Status.UNREACHABLE)
            assert f"{missing}: it cannot be connected to (Connection refused" in refused
            assert "does a node run there?" in refused


async def test_another_clusters_node_is_not_asked(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(1, Adder) as cluster:
        leader = await cluster.leader()
        for name in ("status", "members", "transfer", "snapshot"):
            arguments = (name, "--node", leader.address)
            refused = await complaint(*arguments, status=Status.UNREACHABLE, cluster=("--cluster", "other"))
            assert f'{leader.address}: this is node 1 of cluster "aioraft.testing", and cluster "other"' in refused
        assert leader.status().snapshot_index == 0


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"\0" * 100, None], ids=repr)
async def test_what_is_no_node_is_known(answer: bytes | None) -> None:
    connected = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        with contextlib.suppress(ConnectionError):
            if answer is None:
                await reader.read()  # it says nothing, and takes everything
            else:
                await reader.readexactly(14)
                writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        address = f"{host}:{port}"
        refused = await complaint("status", "--node", address, "--timeout", "1", status=Status.UNREACHABLE)
        assert connected.is_set()
        assert f"{address}: is it the port of an aioraft node?" in refused


async def test_this_machines_own_address_is_this_machine() -> None:
    """A node that listens on an address that others reach takes commands from its own machine, by whatever address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        try:
            route.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but loopback")
        own = route.getsockname()[0]
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        port = listener.getsockname()[1]
        config = aioraft.Config(insecure=True, election_timeout=0.3, heartbeat_interval=0.03)
        members = {1: f"127.0.0.1:{port}"}
        node = aioraft.Node(id=1, members=members, data_dir=None, state_machine=Adder(), listen=listener, config=config)
        async with node:
            await node.ready(timeout=DEADLINE_S)
            for host in ("127.0.0.1", own):
                done = await run("status", "--node", f"{host}:{port}", "--json", cluster=())
                assert done.returncode == Status.OK, done
                assert json.loads(done.stdout)["id"] == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("status",), "--node"),
        (("status", "--node", "somewhere"), "has no port"),
        (("status", "--node", "a:1,,b:2"), "has no port"),
        (("members", "--node", "a:1", "--timeout", "0"), "no number of seconds above 0"),
        (("members", "--node", "a:1", "--timeout", "nan"), "no number of seconds above 0"),
        (("members", "--node", "a:1", "--cluster", ""), "1 to 255 bytes"),
        (("transfer", "x", "--node", "a:1"), "no node's id"),
        (("transfer", "0", "--node", "a:1"), "from 1 to"),
        (("transfer", "-1", "--node", "a:1"), "no node's id"),
        (("snapshot", "1", "--node", "a:1"), "unrecognized arguments"),
    ],
)
async def test_wrong_arguments(arguments: tuple[str, ...], expected: str) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (Status.USAGE, "")
    assert expected in done.stderr


# Interrupted


SILENT = """
import signal, socket, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from aioraft import _cli, _core
try:
    _core.AdminClient(sys.argv[1], cluster="default").status(1000.0)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("who", ["client", "command"])
async def test_ctrl_c_ends_a_call(who: str) -> None:
    greeted, ended = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(14)
        greeted.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        ended.set()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        address = f"{host}:{port}"
        begin = ["-c", SILENT, address] if who == "client" else ["-m", "aioraft", "status", "--node", address]
        process = await asyncio.create_subprocess_exec(sys.executable, *begin, stdout=-1, stderr=-1)
        async with asyncio.timeout(DEADLINE_S):
            await greeted.wait()
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
            await ended.wait()
        expected = (b"interrupted\n", b"", 0) if who == "client" else (b"", b"", -signal.SIGINT)
        assert (out, err, process.returncode) == expected


async def test_the_client_releases_the_gil_and_says_what_became_of_it(raft_cluster: RaftCluster) -> None:
    async with raft_cluster(1, Adder) as cluster:
        leader = await cluster.leader()
        client = _core.AdminClient(leader.address, cluster=CLUSTER[1])
        # The node, and its state machine, are in this process: nobody would answer if the call held the GIL.
        statuses = await asyncio.gather(*(asyncio.to_thread(client.status, 10.0) for _ in range(8)))
        assert {status["id"] for status in statuses} == {1}
        with pytest.raises(AdminError, match="no snapshot") as refused:
            await asyncio.to_thread(client.snapshot, 10.0)
        assert (refused.value.kind, refused.value.outcome) == ("refused", aioraft.Outcome.NOT_COMMITTED)
        with pytest.raises(ValueError, match="above 0"):
            client.status(0.0)


# Processes


async def test_processes_under_load_are_asked_while_one_is_killed(tmp_path: pathlib.Path) -> None:
    random = make_random()
    async with three_processes(tmp_path, random.randrange(10**9)) as processes:
        nodes = ",".join(f"{host}:{port}" for host, port in (process.address for process in processes.all))
        leader = await processes.leader()
        await processes.ask(processes.running, "load", in_flight=8)
        await processes.more(processes.running, 50)
        to = next(process for process in processes.all if process is not leader)
        done = await run("transfer", str(to.number), "--node", nodes, "--json", cluster=())
        assert (done.returncode, json.loads(done.stdout)) == (Status.OK, {"leader": to.number}), done
        await leader.kill()
        await processes.more([process for process in processes.all if process is not leader], 50)
        others = [f"{host}:{port}" for host, port in (process.address for process in processes.running)]
        done = await run("status", "--node", nodes, "--json", cluster=())
        found = json.loads(done.stdout)
        assert (done.returncode, found["leader"] in {process.number for process in processes.running}) == (0, True)
        assert found["address"] in others
        (gone,) = (peer for peer in found["peers"] if peer["id"] == leader.number)
        assert not gone["connected"]
        assert gone["trouble"]
        await processes.start()
        await processes.stop_load()
        await processes.assert_counted_once()


async def test_a_process_that_is_killed_in_the_middle_of_a_call_leaves_it_unknown(tmp_path: pathlib.Path) -> None:
    random = make_random()
    async with three_of_kind(Snapshotting, tmp_path, random.randrange(10**9)) as processes:
        process = await processes.leader()
        await process.ask("hold", stage="capturing")
        address = ":".join(map(str, process.address))
        calling = asyncio.create_task(complaint("snapshot", "--node", address, status=Status.UNKNOWN, cluster=()))
        await processes.until(lambda: "capturing" in process.stages, "it captures")
        os.kill(process.pid, signal.SIGKILL)
        process.send_kill()
        assert "no answer came" in await calling
        await process.killed()
        await processes.start()
