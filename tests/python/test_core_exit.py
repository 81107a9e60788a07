"""aioraft._core.Core over an echo, in processes that end in every way but the tidy one: none hangs, crashes or talks."""

from __future__ import annotations

import subprocess
import sys

import pytest

import core_programs
from core_help import DEADLINE
from programs import A_MOMENT_S, assert_it_ends


@pytest.mark.parametrize("name", core_programs.PROGRAMS)
def test_a_program_ends(name: str) -> None:
    assert_it_ends(core_programs.__file__, name, runs=7, within_s=A_MOMENT_S)


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
