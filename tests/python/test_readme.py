"""README.md: its program runs, its types hold, and its commands are there."""

from __future__ import annotations

import asyncio
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys

import pytest

from documents import ROOT, blocks, check_types, commands
from processes import DEADLINE_S, FAULT, reserved_addresses

(PROGRAM,) = blocks("README.md", "python")


def test_the_program_holds_its_types(tmp_path: pathlib.Path) -> None:
    check_types(PROGRAM, tmp_path)


def test_every_command_is_known_and_tested() -> None:
    # What builds is run by `make test` and `make wheel` themselves; the program's command, below.
    assert commands("README.md") == ["make demo", "make test", "pip install .", "python stock.py 1"]


@pytest.mark.parametrize("document", sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("*.md")))
def test_every_make_target_that_is_named_is_there(document: str) -> None:
    named = set(re.findall(r"(?:^ {4}|^|`)make ([a-z-]+)", (ROOT / document).read_text(), re.MULTILINE))
    for target in named:
        dry_run = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, timeout=60, check=False)
        assert dry_run.returncode == 0, dry_run.stderr.decode()


@pytest.mark.asyncio
async def test_three_processes_of_the_program_agree(tmp_path: pathlib.Path) -> None:
    command = next(command for command in commands("README.md") if command.startswith("python "))
    with reserved_addresses(3) as members:
        program = PROGRAM
        for number, address in members.items():
            given = f'{number}: "127.0.0.1:740{number}"'
            assert given in program
            program = program.replace(given, f'{number}: "{address}"')
        (tmp_path / "stock.py").write_text(program)
        processes = [await start(command, number, tmp_path) for number in members]
        try:
            outputs = await asyncio.gather(*(read(process) for process in processes))
        finally:
            for process in processes:
                process.send_signal(signal.SIGINT)
            ends = await asyncio.gather(*(asyncio.wait_for(process.communicate(), 20) for process in processes))
        assert [process.returncode for process in processes] == [0, 0, 0]
        assert not any(FAULT.search(errors.decode()) for _, errors in ends)
    results = [output[0].split(" ", 1) for output in outputs]
    assert sorted(int(left) for left, _ in results) == [5, 10, 15]
    for left, items in results:
        assert int(re.findall(r"\d+", items)[0]) >= int(left)
    entries = [[line.split(" {")[0] for line in output[1:]] for output in outputs]
    assert entries[0] == entries[1] == entries[2]
    assert all(entry.endswith("""b'["bolt", 5]'""") for entry in entries[0])
    assert [output[-1].endswith(" {'bolt': 15}") for output in outputs] == [True, True, True]


async def start(command: str, number: int, folder: pathlib.Path) -> asyncio.subprocess.Process:
    """Run the document's command, for one of the three."""
    python, script, one = shlex.split(command)
    assert (python, one) == ("python", "1")
    return await asyncio.create_subprocess_exec(
        sys.executable,
        script,
        str(number),
        cwd=folder,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def read(process: asyncio.subprocess.Process) -> list[str]:
    """Read its result, and the three entries."""
    assert process.stdout is not None
    lines: list[str] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(lines) < 4:
            line = await process.stdout.readline()
            assert line, "it ended"
            lines.append(line.decode().rstrip())
    return lines
