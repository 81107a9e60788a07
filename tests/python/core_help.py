"""What the tests of the bridge share: cores over an echo instead of Raft, machines that do as told, and every loop."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import os
import pathlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import aioraft
from aioraft._core import Core
from aioraft._state_machine import ask_durable, has_snapshot

DEADLINE = 30.0
"""No wait of a test is longer, in seconds."""


class Scripted(aioraft.StateMachine[Any]):
    """Returns what it is given, or what `script` makes of it; remembers the indexes."""

    def __init__(self, script: Callable[[aioraft.Entry], Any] | None = None) -> None:
        self.script = script
        self.seen: list[int] = []

    def apply(self, entry: aioraft.Entry) -> Any:
        self.seen.append(entry.index)
        return entry.data if self.script is None else self.script(entry)


class ScriptedBatch(Scripted):
    """The same for `apply_batch`; `answer` makes the results of a call."""

    def __init__(self, answer: Callable[[Sequence[aioraft.Entry]], Any]) -> None:
        super().__init__()
        self.answer = answer
        self.sizes: list[int] = []

    def apply_batch(self, entries: Sequence[aioraft.Entry]) -> Any:
        self.sizes.append(len(entries))
        self.seen += [entry.index for entry in entries]
        return self.answer(entries)


class Snapshotting(Scripted):
    """Its snapshot is what `make` returns; remembers what it was given to restore, chunks as a list."""

    def __init__(self, make: Callable[[], Any] | None = None) -> None:
        super().__init__()
        self.make = make
        self.restored: list[Any] = []

    def snapshot(self) -> Any:
        return repr(self.seen).encode() if self.make is None else self.make()

    def restore(self, data: Any) -> None:
        self.restored.append(data if isinstance(data, bytes) else list(data))


def make_core(
    machine: aioraft.StateMachine[Any] | None = None,
    *,
    members: int = 1,
    config: aioraft.Config | None = None,
    listen: str | int = "127.0.0.1:0",
    data_dir: pathlib.Path | None = None,
) -> Core:
    """A core of the running loop. With several members it never has a majority: what is proposed waits."""
    machine = machine or Scripted()
    return Core(
        loop=asyncio.get_running_loop(),
        node_id=1,
        members={member: f"127.0.0.1:{7400 + member}" for member in range(1, members + 1)},
        cluster="default",
        data_dir=None if data_dir is None else str(data_dir),
        listen=listen,
        advertise=None,
        config=config or aioraft.Config(),
        state_machine=machine,
        batch=isinstance(machine, ScriptedBatch),
        snapshots=has_snapshot(machine),
        durable_applied=ask_durable(machine),
        echo=True,
    )


async def started(
    machine: aioraft.StateMachine[Any] | None = None,
    *,
    members: int = 1,
    config: aioraft.Config | None = None,
    data_dir: pathlib.Path | None = None,
) -> Core:
    """A core that listens and, with a single member, leads."""
    core = make_core(machine, members=members, config=config, data_dir=data_dir)
    await core.start()
    while members == 1 and core.leadership[2] is None:
        await core.wait_leadership(core.leadership[0])
    return core


class WithoutReader(asyncio.SelectorEventLoop):
    """A loop like Windows' proactor, which watches no file descriptors."""

    def add_reader(self, *_: Any) -> None:  # type: ignore[override]
        raise NotImplementedError


def new_uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": new_uvloop,
    "without add_reader": WithoutReader,
}


def run_on(kind: str, main: Coroutine[Any, Any, Any]) -> None:
    """Run `main` on a loop of this kind, to its end; nothing may be left to the loop's exception handler."""
    reports: list[dict[str, Any]] = []
    gc.freeze()  # so that a collection looks at what the test made only
    try:
        with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
            runner.get_loop().set_exception_handler(lambda _, report: reports.append(report))
            runner.run(asyncio.wait_for(main, DEADLINE))
            gc.collect()
        gc.collect()
    finally:
        gc.unfreeze()
    assert reports == []


def on_every_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run the test once on each kind of event loop."""
    import pytest  # not needed by core_programs, which is to start quickly

    @functools.wraps(test)
    def wrapped(loop_kind: str, **arguments: Any) -> None:
        run_on(loop_kind, test(**arguments))

    given = inspect.signature(test)
    kind = inspect.Parameter("loop_kind", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    wrapped.__signature__ = given.replace(parameters=[kind, *given.parameters.values()])  # type: ignore[attr-defined]
    parametrized: Callable[..., None] = pytest.mark.parametrize("loop_kind", LOOPS)(wrapped)
    return parametrized


async def outcome(call: Awaitable[Any]) -> BaseException:
    """What the call raises, an exception that must come."""
    try:
        value = await call
    except BaseException as error:
        return error
    raise AssertionError(f"it returned {value!r}")


def refusal(call: Callable[[], Any]) -> BaseException:
    """What the call raises at once."""
    try:
        value = call()
    except BaseException as error:
        return error
    raise AssertionError(f"it returned {value!r}")


def driver_threads() -> list[str]:
    """The names of this process' threads that belong to a core."""
    names = []
    for task in pathlib.Path("/proc/self/task").iterdir():
        try:
            names.append((task / "comm").read_text().strip())
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    return [name for name in names if name.startswith("aioraft")]


def wait_without_threads() -> None:
    """Wait until no thread of a core is left."""
    end = time.monotonic() + DEADLINE
    while driver_threads():
        assert time.monotonic() < end, driver_threads()
        os.sched_yield()


def waiting_calls(core: Core) -> dict[str, Callable[[], asyncio.Future[Any]]]:
    """Every call that returns a future, except for start, close and snapshot, which not every machine has."""
    return {
        "propose": lambda: core.propose(b"x", None),
        "propose_many": lambda: core.propose_many([b"x", b"y"], None),
        "read_barrier": lambda: core.read_barrier(None),
        "read_applied": lambda: core.read_applied(0, 1000),
        "wait_applied": lambda: core.wait_applied(1000),
        "wait_leadership": lambda: core.wait_leadership(core.leadership[0]),
        "wait_room": lambda: core.wait_room(),
    }
