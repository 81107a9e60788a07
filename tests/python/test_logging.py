"""What a node says reaches Python's logging, raft-rs' own records among it."""

from __future__ import annotations

import json
import logging
import pathlib
import re
import subprocess
import sys

import pytest

import aioraft
from aioraft.testing import Cluster
from documents import ROOT, blocks, check_types
from machines import Adder


@pytest.mark.asyncio
async def test_records_of_driver_and_raft_have_fields(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="aioraft")
    async with Cluster(1, Adder) as cluster:
        await cluster.leader()
    fields = {record.name: vars(record).get("aioraft") for record in caplog.records}
    driver = [record for record in caplog.records if record.name.startswith("aioraft.driver")]
    raft = [record for record in caplog.records if record.name.startswith("aioraft.raft")]
    assert any(vars(record)["aioraft"].get("boot") == 1 for record in driver), fields
    assert any("became leader" in record.getMessage() and vars(record)["aioraft"] for record in raft), fields


class Broken(Adder):
    def apply(self, entry: aioraft.Entry) -> int:
        raise OSError("the application's own disk")


@pytest.mark.asyncio
async def test_a_node_that_stops_by_itself_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async with Cluster(1, Broken) as cluster:
        with pytest.raises(aioraft.FatalError):
            await cluster.nodes[0].propose(b"1")
    said = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(said) == 1, said
    assert said[0].name == "aioraft.node"
    assert said[0].exc_info is not None
    assert isinstance(said[0].exc_info[1], OSError)


TERMINAL, JSON = blocks("docs/logging.md", "python")


def run_documented(program: str) -> list[str]:
    """Run what the document shows with a node behind it; return what it logs."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport logging_program"],
        cwd=pathlib.Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_the_documented_configuration_for_a_terminal() -> None:
    lines = run_documented(TERMINAL)
    assert any(re.fullmatch(r"\S+ \S+ INFO aioraft\.node: node 1 of .* listens on .*", line) for line in lines), lines
    assert any("aioraft.raft: became leader" in line for line in lines), lines
    assert any("WARNING aioraft.node: node 1 keeps its log in memory" in line for line in lines), lines
    assert any("ERROR aioraft.apply: apply raised for the entry" in line for line in lines), lines


def test_the_documented_configuration_for_json() -> None:
    records = [json.loads(line) for line in run_documented(JSON)]
    assert all(isinstance(record["time"], float) for record in records)
    leads = [record for record in records if record["logger"] == "aioraft.driver" and record.get("leader") == 1]
    assert leads, records
    assert {"level": "INFO", "leader": 1}.items() <= leads[-1].items()
    assert leads[-1]["term"] > 0
    assert [record["node"] for record in records if record["logger"] == "aioraft.node"] == [1, 1, 1]
    raised = [record for record in records if record["logger"] == "aioraft.apply"]
    assert [record["level"] for record in raised] == ["ERROR"]
    assert "ValueError: told to fail" in raised[0]["exception"]
    assert raised[0]["index"] > 0


@pytest.mark.parametrize("program", [TERMINAL, JSON], ids=["terminal", "json"])
def test_the_documented_programs_hold_their_types(program: str, tmp_path: pathlib.Path) -> None:
    check_types(program, tmp_path)


def test_every_logger_is_documented() -> None:
    text = (ROOT / "docs" / "logging.md").read_text()
    rows = set(re.findall(r"^\| `(aioraft\.\w+)` \|", text, re.MULTILINE))
    rust = {f"aioraft.{path.parts[-1]}" for path in (ROOT / "src").iterdir() if says(path, "*.rs", r"tracing::\w+!\(")}
    assert rust - {"aioraft.bridge"} <= rows, "the first folder of a module is its logger's name"
    assert rows - rust == {"aioraft.node", "aioraft.apply", "aioraft.snapshot", "aioraft.raft"}
    assert says(ROOT / "python", "*.py", r'getLogger\("aioraft\.node"\)')


def says(folder: pathlib.Path, files: str, pattern: str) -> bool:
    return any(re.search(pattern, path.read_text()) for path in folder.rglob(files))
