"""aioraft._core.Core over an echo, in processes that end in every way but the tidy one: none hangs, crashes or talks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

import core_programs
from core_help import DEADLINE, LOOPS

RUNS = 7
"""On each kind of loop."""


@pytest.mark.parametrize("name", core_programs.PROGRAMS)
def test_a_program_ends(name: str) -> None:
    begin = [sys.executable, "-X", "faulthandler", "-W", "error", core_programs.__file__, name]
    processes = {
        kind: subprocess.Popen(
            [*begin, kind, str(RUNS)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        for kind in LOOPS
    }
    try:
        for kind, process in processes.items():
            output, errors = process.communicate(timeout=DEADLINE)
            assert (process.returncode, output, errors) == (0, "done\n" * RUNS, ""), kind
    finally:
        for process in processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


SECOND_INTERPRETER = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
import aioraft
second = interpreters.create()
failed = interpreters.run_string(second, '''
try:
    import aioraft
except ImportError as error:
    assert "interpreter" in str(error), error
else:
    raise AssertionError("it was imported")
''')
sys.exit(0 if failed is None else str(failed))
"""


def test_a_second_interpreter_is_refused() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SECOND_INTERPRETER], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
