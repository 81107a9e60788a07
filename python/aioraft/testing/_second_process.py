"""Runs a simulation test that has passed again, in a process where strings have other hashes, and compares.

In one process equal strings have equal hashes, so what depends on them agrees, and would not in a real cluster. It is
the whole test that runs again, because its state machine may be local to it.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any, Final

import pytest

from .._core import Entry
from ._simulation import Life, Simulation, SimulationError

__all__ = ["compare_with_second_process", "is_second_process", "write_lives"]

VARIABLE: Final = "AIORAFT_SIMULATION_LIVES"
TIME_ZONE: Final = "SIM-11:30"
OUTPUT_SHOWN: Final = 3000


def is_second_process() -> bool:
    """Whether this process is the one that runs a test again."""
    return VARIABLE in os.environ


def write_lives(simulations: list[Simulation[Any]]) -> None:
    """Tell the first process what the test's simulations came to here."""
    lives = [[life.seed, life.lines] for life in _lives(simulations)]
    pathlib.Path(os.environ[VARIABLE]).write_text(json.dumps(lives))


def compare_with_second_process(item: pytest.Item, seed: int, simulations: list[Simulation[Any]]) -> None:
    """Run the test of `item` again elsewhere; raises `SimulationError` if anything comes to something else there."""
    __tracebackhide__ = True
    if not _lives(simulations):
        return
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "lives.json"
        done = subprocess.run(
            _command(item, seed),
            cwd=item.config.invocation_params.dir,
            env=_environment(file),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode != 0 or not file.exists():
            details = (
                "It passed in this process, and not in one with another PYTHONHASHSEED and time zone "
                f"(`--raft-once` leaves that out):\n{done.stdout[-OUTPUT_SHOWN:]}"
            )
            raise _error(item, "the test passes in another process", seed, None, details)
        lives = json.loads(file.read_text())
    _compare(item, simulations, lives)


def _compare(item: pytest.Item, simulations: list[Simulation[Any]], theirs: list[Any]) -> None:
    __tracebackhide__ = True
    ours = _lives(simulations)
    if [life.seed for life in ours] != [seed for seed, _ in theirs]:
        raise _other_commands(item, ours[0].seed)
    for life, (_, others) in zip(ours, theirs, strict=True):
        if list(map(_command_of, life.lines)) != list(map(_command_of, others)):
            raise _other_commands(item, life.seed)
        for entry, line, other in zip(life.log, life.lines, others, strict=True):
            if line != other:
                raise _different(item, life.seed, entry, line, other)


def _lives(simulations: list[Simulation[Any]]) -> list[Life]:
    return [life for one in simulations for life in one._lives or ()]


def _command_of(line: str) -> list[str]:
    return line.split(" ", 3)[:3]


def _different(item: pytest.Item, seed: int, entry: Entry, line: str, other: str) -> SimulationError:
    (*_, state, outcome), (*_, other_state, other_outcome) = line.split(" ", 4), other.split(" ", 4)
    check, what, one, two = "apply is deterministic", "came to", outcome, other_outcome
    if outcome == other_outcome:
        check, what, one, two = "replicas agree on the state", "left a snapshot() of digest", state, other_state
    details = (
        f"It {what}\n  {one}  in this process,\n  {two}  in one with another PYTHONHASHSEED and time zone.\n"
        "It depends on the order of a set, on `hash`, or on something else that processes do not share."
    )
    return _error(item, check, seed, entry, details)


def _other_commands(item: pytest.Item, seed: int) -> SimulationError:
    details = (
        "In a process with another PYTHONHASHSEED and time zone its commands are other ones: draw them from the "
        "`random.Random` that `command` is given, and from nothing else."
    )
    return _error(item, "the seed decides what the test does", seed, None, details)


def _error(item: pytest.Item, check: str, seed: int, entry: Entry | None, details: str) -> SimulationError:
    return SimulationError(check, seed=seed, entry=entry, details=details, again=how_again(item, seed))


def how_again(item: pytest.Item, seed: int | str) -> str:
    """Return the command that runs a test with a seed."""
    name = item.nodeid
    if "raft_seed" in getattr(getattr(item, "callspec", None), "params", {}):
        name = name.partition("[")[0]
    return f"pytest {name} --raft-seed {seed}"


def _command(item: pytest.Item, seed: int) -> list[str]:
    option = item.config.option
    command = [sys.executable, "-m", "pytest", f"--rootdir={item.config.rootpath}", "-o", "addopts="]
    if item.config.inipath is not None:
        command += ["-c", str(item.config.inipath)]
    for plugin in option.plugins or ():
        command += ["-p", plugin]
    for setting in option.override_ini or ():
        command += ["-o", setting]
    command += [f"--import-mode={option.importmode}", f"--raft-seed={seed}"]
    if "raft_seed" in getattr(getattr(item, "callspec", None), "params", {}):
        command.append("--raft-seeds=1")
    return [*command, f"{item.path}::{item.nodeid.partition('::')[2]}"]


def _environment(file: pathlib.Path) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "PYTEST_ADDOPTS" and not name.startswith(("PYTEST_XDIST", "COV_CORE"))
    }
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    return kept | {VARIABLE: str(file), "PYTHONHASHSEED": other, "TZ": TIME_ZONE}
