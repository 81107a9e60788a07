"""Programs over `aioraft._core.Core` and an echo that end in every way but the tidy one; see `programs.py`."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import aioraft
from aioraft._core import Core
from core_help import DEADLINE, LOOPS, Scripted, Snapshotting, make_core, refusal, started, waiting_calls
from programs import Programs, kept, run, say_done

PROGRAMS = Programs()


async def leave_in_flight(core: Core) -> list[asyncio.Task[Any]]:
    async def wait(call: Callable[[], asyncio.Future[Any]]) -> Any:
        return await call()

    tasks = [asyncio.create_task(wait(call)) for call in waiting_calls(core).values()]
    await asyncio.sleep(0)
    return tasks


async def propose_for_ever(core: Core) -> None:
    while True:
        await core.propose(b"x", None)


@PROGRAMS.add
def never_started(kind: str) -> None:
    async def main() -> None:
        kept.append(make_core())

    run(kind, main())
    say_done()


@PROGRAMS.add
def without_close(kind: str) -> None:
    async def main() -> None:
        kept.append(await started())

    run(kind, main())
    say_done()


@PROGRAMS.add
def with_calls_in_flight(kind: str) -> None:
    async def main() -> None:
        core = await started(members=3)
        kept.append(core)
        kept.append(await leave_in_flight(core))

    run(kind, main())
    say_done()


@PROGRAMS.add
def under_load(kind: str) -> None:
    async def main() -> None:
        core = await started()
        kept.append(core)
        kept.extend(asyncio.create_task(propose_for_ever(core)) for _ in range(100))
        kept.append(core.propose_many([bytes(1000)] * 5000, None))
        while core.applied < 300:
            await core.wait_applied(core.applied)

    run(kind, main())
    say_done()


@PROGRAMS.add
def loop_stopped_in_between(kind: str) -> None:
    """The loop is neither run to its end nor closed."""
    warnings.simplefilter("ignore", ResourceWarning)  # the program's own fault
    loop = LOOPS[kind]()

    async def main() -> None:
        core = await started()
        kept.append(core)
        kept.append(core.propose_many([b"x"] * 5000, None))
        kept.append(core.propose(b"x", None))

    loop.run_until_complete(main())
    kept.append(loop)
    say_done()


@PROGRAMS.add
def loop_closed_first(kind: str) -> None:
    async def main() -> Core:
        core = await started()
        kept.append(core.propose_many([b"x"] * 5000, None))
        return core

    core = run(kind, main())
    # Its futures can no longer be resolved, but nothing breaks.
    assert core.status()["id"] == 1
    kept.extend(core.propose(b"x", None) for _ in range(3))
    kept.append(core.close(0))
    kept.append(core)
    say_done()


@PROGRAMS.add
def loop_closed_while_closing(kind: str) -> None:
    async def main() -> None:
        core = await started(members=3)
        kept.append(core)
        kept.append(core.propose(b"x", None))
        kept.append(core.close(3600))

    run(kind, main())
    say_done()


@PROGRAMS.add
def ctrl_c(kind: str) -> None:
    async def main() -> None:
        core = await started(members=3)
        try:
            signal.raise_signal(signal.SIGINT)
            await core.propose(b"x", None)
        finally:
            await core.close(0)

    assert isinstance(refusal(lambda: run(kind, main())), KeyboardInterrupt)
    say_done()


@PROGRAMS.add
def ctrl_c_under_load(kind: str) -> None:
    """Wherever it strikes, the program ends."""

    async def main() -> None:
        core = await started()
        kept.append(core)
        kept.extend(asyncio.create_task(propose_for_ever(core)) for _ in range(10))
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
        await core.wait_applied(1 << 60)

    assert isinstance(refusal(lambda: run(kind, main())), KeyboardInterrupt)
    say_done()


@PROGRAMS.add
def ctrl_c_in_apply(kind: str) -> None:
    def script(_: aioraft.Entry) -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        core = await started(Scripted(script))
        kept.append(core)
        await core.propose(b"x", None)

    assert isinstance(refusal(lambda: run(kind, main())), KeyboardInterrupt)
    say_done()


@PROGRAMS.add
def exit_in_apply(kind: str) -> None:
    def script(_: aioraft.Entry) -> None:
        say_done()
        sys.exit(0)

    async def main() -> None:
        core = await started(Scripted(script))
        kept.append(core)
        await core.propose(b"x", None)

    run(kind, main())


@PROGRAMS.add
def failed_task_group(kind: str) -> None:
    async def main() -> None:
        core = await started()
        kept.append(core)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(10):
                tasks.create_task(propose_for_ever(core))
            await core.wait_applied(100)
            raise LookupError

    assert isinstance(refusal(lambda: run(kind, main())), ExceptionGroup)
    say_done()


@PROGRAMS.add
def dropped_in_another_thread(kind: str) -> None:
    async def main() -> Core:
        return await started()

    cores = [run(kind, main())]
    gone = weakref.ref(cores[0])
    thread = threading.Thread(target=cores.clear)
    thread.start()
    thread.join()
    gc.collect()
    assert gone() is None
    say_done()


@PROGRAMS.add
def loop_in_another_thread(kind: str) -> None:
    """The main thread ends first; the interpreter waits for the other."""
    running = threading.Event()

    async def main() -> None:
        core = await started()
        kept.append(core)
        running.set()
        while threading.main_thread().is_alive():
            await core.propose(b"x", None)

    threading.Thread(target=run, args=(kind, main())).start()
    assert running.wait(DEADLINE)
    say_done()


@PROGRAMS.add
def loop_in_a_daemon_thread(kind: str) -> None:
    """The interpreter ends under a loop that is at work."""
    running = threading.Event()

    async def main() -> None:
        core = await started()
        kept.append(core)
        loads = [asyncio.create_task(propose_for_ever(core)) for _ in range(10)]
        running.set()
        await asyncio.gather(*loads)

    threading.Thread(target=run, args=(kind, main()), daemon=True).start()
    assert running.wait(DEADLINE)
    say_done()


def chunks_for_ever() -> Iterator[bytes]:
    while True:
        yield bytes(64 * 1024)


def count_for_ever() -> bytes:
    number = 0
    while True:
        number += 1


SNAPSHOTS: list[Callable[[], Any]] = [chunks_for_ever, lambda: chunks_for_ever, lambda: count_for_ever]
"""On the loop, in a thread that waits for the disk at times, in a thread that never stops."""


async def begin_snapshots() -> None:
    """Have one of each under way."""
    for snapshot in SNAPSHOTS:
        core = await started(Snapshotting(snapshot))
        kept.extend((core, core.snapshot(None)))
        await core.propose_many([b"x"] * 10, None)
        await asyncio.sleep(0.01)


@PROGRAMS.add
def with_snapshots_under_way(kind: str) -> None:
    run(kind, begin_snapshots())
    say_done()


@PROGRAMS.add
def loop_stopped_with_snapshots_under_way(kind: str) -> None:
    warnings.simplefilter("ignore", ResourceWarning)  # the program's own fault
    loop = LOOPS[kind]()
    loop.run_until_complete(begin_snapshots())
    kept.append(loop)
    say_done()


@PROGRAMS.add
def closed_with_snapshots_under_way(kind: str) -> None:
    async def main() -> None:
        for snapshot in SNAPSHOTS:
            core = await started(Snapshotting(snapshot))
            waiting = core.snapshot(None)
            await core.propose(b"x", None)
            await core.close(0)
            assert isinstance(waiting.exception(), aioraft.NodeClosedError)

    run(kind, main())
    say_done()


@PROGRAMS.add
def dropped_with_snapshots_under_way(kind: str) -> None:
    async def main() -> None:
        await begin_snapshots()
        kept.clear()
        gc.collect()

    run(kind, main())
    say_done()


@PROGRAMS.add
def snapshots_in_a_daemon_thread(kind: str) -> None:
    """The interpreter ends under a loop that takes snapshots."""
    running = threading.Event()

    async def main() -> None:
        await begin_snapshots()
        running.set()
        await asyncio.Event().wait()

    threading.Thread(target=run, args=(kind, main()), daemon=True).start()
    assert running.wait(DEADLINE)
    say_done()


@PROGRAMS.add
def forked_with_snapshots_under_way(kind: str) -> None:
    """In a child they harm nobody."""

    async def main() -> None:
        await begin_snapshots()
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        pid = os.fork()
        if pid == 0:
            asyncio._set_running_loop(None)
            kept.clear()
            gc.collect()
            os._exit(0)
        end = time.monotonic() + DEADLINE
        while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < end
            await asyncio.sleep(0.001)
        assert os.waitstatus_to_exitcode(ended[1]) == 0

    run(kind, main())
    say_done()


@PROGRAMS.add
def forked(kind: str) -> None:
    """In a child every use is refused, dropping the core harms nobody, and a core of its own works."""

    def check_refusals(core: Core) -> None:
        uses: list[Callable[[], Any]] = [*waiting_calls(core).values(), core.start, core.status, lambda: core.full]
        uses += [lambda: core.close(0), lambda: core.applied, lambda: core.leadership, lambda: core.stopped]
        for use in uses:
            error = refusal(use)
            assert type(error) is aioraft.WrongLoopError
            assert "forked" in str(error)

    def child(cores: list[Core]) -> None:
        check_refusals(cores.pop())
        gc.collect()

        async def own() -> None:
            core = await started()
            assert await core.propose(b"child", DEADLINE) == b"child"
            await core.close(0)

        run(kind, own())

    async def main() -> None:
        core = await started()
        waiting = core.wait_applied(1)
        cores = [core]
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                asyncio._set_running_loop(None)
                del core, waiting
                child(cores)
                status = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stderr.flush()
                os._exit(status)
        end = time.monotonic() + DEADLINE
        while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < end
            await core.propose(b"parent", DEADLINE)
        assert os.waitstatus_to_exitcode(ended[1]) == 0
        assert await core.propose_many([b"parent"] * 2, DEADLINE) == [b"parent"] * 2
        await waiting
        await core.close(0)

    run(kind, main())
    say_done()


if __name__ == "__main__":
    PROGRAMS.run()
