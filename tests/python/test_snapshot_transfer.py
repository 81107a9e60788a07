"""A large state is taken, sent and restored by three processes. `make test-large` has 1 GiB, `make test` a tenth of it."""

from __future__ import annotations

import asyncio
import functools
import pathlib
import statistics

import pytest

from counting_node import ACKNOWLEDGED, WITHOUT_RESULT
from large_node import CHUNK_BYTES, STATE_BYTES
from processes import HERE, Process, Processes, make_random, three_of_kind
from waiting import until

MIB = 1 << 20
STALL_MAX_S = 0.010
GROWTH_MAX_BYTES = 64 * MIB
LATENCY_MAX_S = 0.5
"""Half an election timeout: whatever is not slower never costs a leader."""
ATTEMPTS = 5
"""A busy machine holds a process up by itself; a stall that is aioraft's own comes each time."""


class LargeStates(Processes):
    program = HERE / "large_node.py"
    deadline_s = 300.0
    succeeded = (ACKNOWLEDGED, WITHOUT_RESULT)


def quantiles(latencies_s: list[float]) -> str:
    cuts = statistics.quantiles(latencies_s, n=100)
    return f"p50 {cuts[49] * 1e3:.1f} ms, p99 {cuts[98] * 1e3:.1f} ms, longest {max(latencies_s) * 1e3:.1f} ms"


def p99_s(latencies_s: list[float]) -> float:
    return statistics.quantiles(latencies_s, n=100)[98]


async def latencies_s(processes: list[Process]) -> list[float]:
    """Return how long proposals of all of `processes` have taken since the last time."""
    return [one for process in processes for one in await process.ask("latencies")]


@pytest.mark.asyncio
@pytest.mark.timeout(1200)
async def test_a_large_state_is_taken_sent_and_restored_while_all_goes_on(tmp_path: pathlib.Path) -> None:
    figures = [f"{STATE_BYTES // MIB} MiB"]
    seed = make_random().randrange(10**9)
    settings = {"election_timeout": 1.0, "heartbeat_interval": 0.1, "snapshot_trail": 0}
    async with three_of_kind(LargeStates, tmp_path, seed, **settings) as processes:
        leader = await processes.leader()
        late, other = [process for process in processes.all if process is not leader]
        working = [leader, other]
        term = leader.leaderships[-1].term
        await late.kill()
        await leader.ask("propose", count=100)

        # Nothing else happens: how long is the loop held up?
        for _ in range(ATTEMPTS):
            await processes.ask(working, "measure memory")
            taken = await leader.ask("take", watch=True)
            stall_s, taker_grew = taken["stall_s"], await leader.ask("grown")
            if stall_s <= STALL_MAX_S:
                break
            await leader.ask("propose", count=1)
        figures.append(f"taken in {taken['took_s']:.1f} s, stall {stall_s * 1e3:.1f} ms, {taker_grew / MIB:.1f} MiB")

        # A steady load, by itself and while one is taken.
        await processes.ask(working, "load", in_flight=4)
        await processes.more(working, 500)
        before = await latencies_s(working)
        figures.append(f"proposals before: {quantiles(before)}")
        await leader.ask("take", watch=False)
        while_taken = await latencies_s(working)
        figures.append(f"while one is taken: {quantiles(while_taken)}")

        # It is sent, and restored.
        await processes.ask(working, "measure memory")
        begun = asyncio.get_running_loop().time()
        await late.start()
        snapshots = late.data_dir / "snapshots"
        await until(lambda: any(snapshots.iterdir()), "the first piece to arrive")
        await until_whole(snapshots)
        sent_s = asyncio.get_running_loop().time() - begun
        while_sent = await latencies_s(working)
        sender_grew = await leader.ask("grown")
        figures.append(
            f"sent in {sent_s:.1f} s, sender {sender_grew / MIB:.1f} MiB, proposals: {quantiles(while_sent)}"
        )
        await late.ask("ready")
        assert await late.ask("restored") == STATE_BYTES // CHUNK_BYTES
        receiver_grew = await late.ask("grown")
        restored_s = asyncio.get_running_loop().time() - begun - sent_s
        figures.append(f"restored in {restored_s:.1f} s, receiver {receiver_grew / MIB:.1f} MiB")
        print("; ".join(figures))  # noqa: T201
        await processes.stop_load()
        await processes.assert_counted_once()

        assert {process.leaderships[-1] for process in working} == {leader.leaderships[-1]}
        assert leader.leaderships[-1].term == term, figures
        assert stall_s <= STALL_MAX_S, figures
        assert max(taker_grew, sender_grew, receiver_grew) <= GROWTH_MAX_BYTES, figures
        assert p99_s(while_taken) <= LATENCY_MAX_S, figures
        assert p99_s(while_sent) <= LATENCY_MAX_S, figures


async def until_whole(snapshots: pathlib.Path) -> None:
    """Wait until a whole snapshot is in the directory, for as long as it gets on."""
    received = -1
    while not is_whole(snapshots):
        await until(functools.partial(gets_on, snapshots, received), f"more than {received} bytes of it")
        received = received_bytes(snapshots)


def is_whole(snapshots: pathlib.Path) -> bool:
    return any(snapshots.glob("*.snapshot"))


def gets_on(snapshots: pathlib.Path, received: int) -> bool:
    return is_whole(snapshots) or received_bytes(snapshots) > received


def received_bytes(snapshots: pathlib.Path) -> int:
    try:
        return sum(file.stat().st_size for file in snapshots.iterdir())
    except FileNotFoundError:  # it has just got another name
        return received_bytes(snapshots)
