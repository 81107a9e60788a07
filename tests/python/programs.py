"""Programs that end in every way but the tidy one, and what it takes to run them many times.

A module of such programs is started as `python MODULE NAME LOOP RUNS`. Each run is a process of its own, forked before
there is any node or thread, which saves the imports. It says "done" when it has come as far as it should; how its
interpreter ends behind that is what is tested.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

from core_help import DEADLINE, LOOPS

RUNS_VARIABLE = "AIORAFT_EXIT_RUNS"
A_MOMENT_S = 2.0
"""For the end of the interpreter, on a machine that is busy."""

kept: list[object] = []
"""Alive until the interpreter ends."""


class Programs(dict[str, Callable[[str], None]]):
    """Programs by their names; each is called with the kind of event loop to use."""

    def add(self, main: Callable[[str], None]) -> Callable[[str], None]:
        """Decorate a program."""
        self[main.__name__] = main
        return main

    def run(self) -> None:
        """Run what the command line names."""
        name, kind, times = sys.argv[1:]
        LOOPS[kind]().close()  # imports it
        if _runs_alone(int(times)):
            self[name](kind)


def run(kind: str, main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        return runner.run(main)


def say_done() -> None:
    _say("done")


def _say(what: str) -> None:
    sys.stdout.write(f"{what} {time.monotonic()}\n")
    sys.stdout.flush()


def _runs_alone(times: int) -> bool:
    """True in each of the processes that this one has made and waited for, one after the other."""
    for _ in range(times):
        pid = os.fork()
        if pid == 0:
            return True
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        _say("ended")
        if status != 0:
            sys.stderr.write(f"it ended with {status}\n")
    return False


def assert_it_ends(module: str | None, name: str, *, runs: int, within_s: float) -> None:
    """Run a program `runs` times on each kind of loop: it comes as far as it should, says nothing else, and ends."""
    assert module is not None
    runs = int(os.environ.get(RUNS_VARIABLE) or runs)
    begin = [sys.executable, "-X", "faulthandler", "-W", "error", module, name]
    processes = {
        kind: subprocess.Popen(
            [*begin, kind, str(runs)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        for kind in LOOPS
    }
    try:
        for kind, process in processes.items():
            output, errors = process.communicate(timeout=DEADLINE * (1 + runs / 10))
            said = [line.split() for line in output.splitlines()]
            assert (process.returncode, errors) == (0, ""), kind
            assert [what for what, _ in said] == ["done", "ended"] * runs, kind
            moments = [float(at) for _, at in said]
            longest_s = max(ended - done for done, ended in zip(moments[::2], moments[1::2], strict=True))
            assert longest_s < within_s, kind
            sys.stdout.write(f"{name} on {kind}: {runs} runs, the longest end took {longest_s:.3f} s\n")
    finally:
        for process in processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
