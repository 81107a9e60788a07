"""Node, in processes that interrupt it, close it or end under it: every await ends, and so does the process."""

from __future__ import annotations

import pytest

import node_programs
from programs import A_MOMENT_S, assert_it_ends


@pytest.mark.parametrize("name", node_programs.PROGRAMS)
def test_a_program_ends(name: str) -> None:
    assert_it_ends(node_programs.__file__, name, runs=2, within_s=node_programs.CONFIG.close_timeout + A_MOMENT_S)
