"""Programs over real nodes: every await of a node ends, however it is ended, and so does the process; see `programs.py`."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeAlias

import aioraft
from core_help import DEADLINE, outcome, refusal
from machines import Adder
from programs import Programs, kept, run, say_done

PROGRAMS = Programs()
CONFIG = aioraft.Config(election_timeout=0.3, heartbeat_interval=0.03, close_timeout=0.05, max_pending_proposals=100)
A_MOMENT_S = 0.01

Call: TypeAlias = Callable[[], Coroutine[Any, Any, Any]]


def make_node(members: int = 1, *, config: aioraft.Config = CONFIG) -> aioraft.Node[int]:
    """A node in memory. With several members it never meets the others, so that no call ends by itself."""
    addresses = {number: f"127.0.0.1:{number}" for number in range(1, members + 1)}
    return aioraft.Node(
        id=1, members=addresses, data_dir=None, listen="127.0.0.1:0", state_machine=Adder(), config=config
    )


async def read(make: Callable[[], AsyncIterator[Any]]) -> None:
    """Read what `make` returns, to its end."""
    async for _ in make():
        pass


def awaits(node: aioraft.Node[int]) -> dict[str, Call]:
    """Every await of a node that has no majority, except for the first and the last."""
    return {
        "ready": node.ready,
        "propose": lambda: node.propose(b"1", timeout=None),
        "propose_many": lambda: node.propose_many([b"1", b"1"], timeout=None),
        "propose, without room": lambda: propose_without_room(node),
        "read_barrier": lambda: node.read_barrier(timeout=None),
        "wait_for_leader": node.wait_for_leader,
        "commits": lambda: read(lambda: node.commits(after=0)),
        "batches": lambda: read(lambda: node.commits(after=0).batches()),
        "leadership": lambda: read(node.leadership),
        "leading": lambda: read(node.leading),
        "wait_stopped": node.wait_stopped,
    }


async def propose_without_room(node: aioraft.Node[int]) -> None:
    """Fill the node up with proposals that nobody waits for, then wait for room."""
    filling = asyncio.create_task(node.propose_many([b"1"] * CONFIG.max_pending_proposals, timeout=None))
    filling.add_done_callback(lambda filled: filled.cancelled() or filled.exception())
    await asyncio.sleep(0)
    filling.cancel()
    await node.propose(b"1", timeout=None)


async def propose_for_ever(node: aioraft.Node[int]) -> None:
    while True:
        await node.propose(b"1", timeout=None)


async def work(node: aioraft.Node[int]) -> list[asyncio.Task[None]]:
    """Keep a node busy; return when it is."""
    tasks = [asyncio.create_task(propose_for_ever(node)) for _ in range(10)]
    tasks += [asyncio.create_task(read(node.commits)), asyncio.create_task(read(node.leadership))]
    await node.propose(b"1")
    return tasks


# Interrupted


async def by_cancel(call: Call) -> BaseException:
    task = asyncio.create_task(call())
    for _ in range(random.randrange(5)):
        await asyncio.sleep(0)
    task.cancel()
    return await outcome(task)


async def by_timeout(call: Call) -> BaseException:
    async def wait() -> None:
        async with asyncio.timeout(random.choice((0, A_MOMENT_S))):
            await call()

    return await outcome(wait())


async def by_wait_for(call: Call) -> BaseException:
    return await outcome(asyncio.wait_for(call(), random.choice((0, A_MOMENT_S))))


async def interrupt_everything(
    interrupt: Callable[[Call], Awaitable[BaseException]], raised: type[BaseException]
) -> None:
    """Every await raises `raised` and nothing else, and leaves the node as it was."""
    for name in awaits(make_node()):
        async with make_node(3) as node:  # each has one of its own: the first would take the others' room
            error = await interrupt(awaits(node)[name])
            assert type(error) is raised, f"{name}: {error!r}"
            assert node.status().role == "forming"
        assert node.status().role == "closed"
    node = make_node(3)
    error = await interrupt(lambda: start_and_wait(node))
    assert type(error) is raised, f"start: {error!r}"
    await node.aclose()
    node = make_node(3)
    await node.start()
    waiting = asyncio.create_task(outcome(node.propose(b"1", timeout=None)))
    await asyncio.sleep(0)
    error = await interrupt(lambda: close_and_wait(node))
    assert type(error) is raised, f"aclose: {error!r}"
    await node.aclose()
    assert type(await waiting) is aioraft.NodeClosedError
    assert not isinstance(raised, aioraft.RaftError)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def start_and_wait(node: aioraft.Node[int]) -> None:
    await node.start()
    await asyncio.Event().wait()  # it may be quicker than the interruption


async def close_and_wait(node: aioraft.Node[int]) -> None:
    await node.aclose()
    await asyncio.Event().wait()


@PROGRAMS.add
def cancelled(kind: str) -> None:
    run(kind, interrupt_everything(by_cancel, asyncio.CancelledError))
    say_done()


@PROGRAMS.add
def timed_out(kind: str) -> None:
    run(kind, interrupt_everything(by_timeout, TimeoutError))
    say_done()


@PROGRAMS.add
def waited_for(kind: str) -> None:
    run(kind, interrupt_everything(by_wait_for, TimeoutError))
    say_done()


@PROGRAMS.add
def interrupted_under_load(kind: str) -> None:
    """Calls that are being answered are interrupted all the same; what was proposed is applied once."""

    async def main() -> None:
        async with make_node() as node:
            for turn in range(60):
                interrupt = (by_cancel, by_timeout, by_wait_for)[turn % 3]
                error = await interrupt(lambda: propose_and_wait(node))
                assert type(error) in (asyncio.CancelledError, TimeoutError)
            await node.read_barrier()
            while node.status().pending_proposals:
                await node.propose(b"0")
            machine = node.state_machine
            assert isinstance(machine, Adder)
            assert machine.total == proposed

    proposed = 0

    async def propose_and_wait(node: aioraft.Node[int]) -> None:
        nonlocal proposed
        proposed += 1
        await node.propose(b"1", timeout=None)
        await asyncio.Event().wait()

    run(kind, main())
    say_done()


@PROGRAMS.add
def deadline_passed(kind: str) -> None:
    async def main() -> None:
        async with make_node(3) as node:
            calls: dict[Awaitable[Any], type[aioraft.RaftError]] = {
                node.propose(b"1", timeout=A_MOMENT_S): aioraft.ProposalTimeoutError,
                node.propose_many([b"1", b"1"], timeout=A_MOMENT_S): aioraft.ProposalTimeoutError,
                node.read_barrier(timeout=A_MOMENT_S): aioraft.ReadTimeoutError,
                node.ready(timeout=A_MOMENT_S): aioraft.ReadTimeoutError,
                node.wait_for_leader(timeout=A_MOMENT_S): aioraft.ReadTimeoutError,
            }
            raised = await asyncio.gather(*map(outcome, calls))
            assert [type(error) for error in raised] == list(calls.values())
            assert all(isinstance(error, TimeoutError) for error in raised)
            assert node.status().pending_proposals == 0

    run(kind, main())
    say_done()


# Closed


@PROGRAMS.add
def closed_with_calls_in_flight(kind: str) -> None:
    async def main() -> None:
        node = make_node(3)
        await node.start()
        tasks = {name: asyncio.create_task(call()) for name, call in awaits(node).items()}
        await asyncio.sleep(random.choice((0, A_MOMENT_S)))
        began = time.monotonic()
        await node.aclose()
        assert time.monotonic() - began < CONFIG.close_timeout + 1
        await asyncio.wait(tasks.values())
        for name, task in tasks.items():
            ends_quietly = name in ("commits", "batches", "leadership", "leading", "wait_stopped")
            assert type(task.exception()) is (type(None) if ends_quietly else aioraft.NodeClosedError), name

    run(kind, main())
    say_done()


@PROGRAMS.add
def closed_under_load(kind: str) -> None:
    async def main() -> None:
        node = make_node()
        await node.start()
        tasks = await work(node)
        await node.aclose()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(end) for end in ends} == {type(None), aioraft.NodeClosedError}

    run(kind, main())
    say_done()


# Never closed


@PROGRAMS.add
def without_aclose(kind: str) -> None:
    async def main() -> None:
        node = make_node()
        await node.start()
        kept.append(node)
        kept.append(await work(node))

    run(kind, main())
    say_done()


@PROGRAMS.add
def without_aclose_and_majority(kind: str) -> None:
    async def main() -> None:
        node = make_node(3)
        await node.start()
        kept.append(node)
        kept.extend(asyncio.create_task(call()) for call in awaits(node).values())
        await asyncio.sleep(0)

    run(kind, main())
    say_done()


@PROGRAMS.add
def loop_closed_first(kind: str) -> None:
    async def main() -> aioraft.Node[int]:
        node = make_node()
        await node.start()
        kept.append(await work(node))
        return node

    async def elsewhere() -> None:
        for name, call in awaits(node).items():
            error = await outcome(call())
            assert type(error) is aioraft.WrongLoopError, f"{name}: {error!r}"
        assert type(await outcome(node.aclose())) is aioraft.WrongLoopError

    node = run(kind, main())
    kept.append(node)
    assert node.status().id == 1
    run(kind, elsewhere())
    say_done()


# Interrupted by the user, or by a fault of the application


@PROGRAMS.add
def ctrl_c(kind: str) -> None:
    """Wherever it strikes, the node is closed and the program ends."""

    async def main() -> None:
        async with make_node() as node:
            nodes.append(node)
            tasks = await work(node)
            threading.Timer(random.uniform(0, A_MOMENT_S), os.kill, (os.getpid(), signal.SIGINT)).start()
            await asyncio.gather(*tasks)

    nodes: list[aioraft.Node[int]] = []
    assert isinstance(refusal(lambda: run(kind, main())), KeyboardInterrupt)
    assert nodes[0].status().role in ("closed", "stopped")  # stopped, if it struck in `apply`
    say_done()


@PROGRAMS.add
def failed_task_group(kind: str) -> None:
    async def main() -> None:
        async with make_node() as node, asyncio.TaskGroup() as tasks:
            nodes.append(node)
            tasks.create_task(node.wait_stopped())
            for _ in range(10):
                tasks.create_task(propose_for_ever(node))
            tasks.create_task(read(node.commits))
            await node.propose(b"1")
            raise LookupError

    nodes: list[aioraft.Node[int]] = []
    error = refusal(lambda: run(kind, main()))
    assert isinstance(error, ExceptionGroup)
    assert [type(one) for one in error.exceptions] == [LookupError]
    assert nodes[0].status().role == "closed"
    say_done()


# Forked


def use_in_a_child(node: aioraft.Node[int]) -> None:
    """Every use of the parent's node is refused, and a node of one's own works."""

    async def child() -> None:
        for name, call in {**awaits(node), "aclose": node.aclose}.items():
            error = await outcome(call())
            assert type(error) is aioraft.WrongLoopError, f"{name}: {error!r}"
            assert "forked" in str(error)
        for use in (node.status, node.commits, node.leadership, node.leading):
            assert type(refusal(use)) is aioraft.WrongLoopError
        assert "of another thread or process" in repr(node)
        async with make_node() as own:
            assert await own.propose(b"5") == 5

    asyncio.run(child())


@PROGRAMS.add
def forked_by_multiprocessing(kind: str) -> None:
    async def main() -> None:
        async with make_node() as node:
            assert await node.propose(b"1") == 1
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
            child = multiprocessing.get_context("fork").Process(target=use_outside_a_loop, args=(node,))
            child.start()
            joined = asyncio.create_task(asyncio.to_thread(child.join, DEADLINE))
            total = 1
            while not joined.done():
                total += 1
                assert await node.propose(b"1") == total
            assert child.exitcode == 0

    run(kind, main())
    say_done()


def use_outside_a_loop(node: aioraft.Node[int]) -> None:
    asyncio._set_running_loop(None)  # the fork has copied that there is one
    use_in_a_child(node)
    sys.stderr.flush()


if __name__ == "__main__":
    logging.getLogger("aioraft").setLevel(logging.ERROR)  # it warns of a log in memory, and that the others are missing
    PROGRAMS.run()
