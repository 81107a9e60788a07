"""The programs under benches/ measure, and say what they have found; how fast it is, they are not asked here."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from xml.etree import ElementTree

import pytest

import chart
import report
from load import Load
from report import Cell

BENCHES = pathlib.Path(report.__file__).parent


def run(program: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCHES / program), "--rounds", "1", "--seconds", "1", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cells_of(path: pathlib.Path) -> dict[tuple[str, str, int, int], dict[str, float]]:
    cells = json.loads(path.read_text())["medians"]
    assert [cell for cell in cells if "failed" in cell["found"]] == []
    loads = [(cell["who"], cell["load"]) for cell in cells]
    keys = [(who, load["what"], load["in_flight"], load["value_bytes"]) for who, load in loads]
    return dict(zip(keys, (cell["found"] for cell in cells), strict=True))


def test_side_by_side_measures_aioraft_and_the_disk_in_turns(tmp_path: pathlib.Path) -> None:
    loads = ("--in-flight", "1", "8", "--value-bytes", "64", "4096")
    printed = run(
        "side_by_side.py", "--only", "aioraft", *loads, "--dir", str(tmp_path), "--out", str(tmp_path / "out")
    )
    assert "Proposals of 64 bytes" in printed
    assert "raftify is left out: " in printed
    found = cells_of(tmp_path / "out" / "side-by-side.json")
    for who in ("aioraft", "aioraft, on a follower"):
        for in_flight in (1, 8):
            for value_bytes in (64, 4096):
                figures = found[who, "propose", in_flight, value_bytes]
                assert figures["rate"] > 0, figures
                assert 0 < figures["p50_ms"] <= figures["p99_ms"]
                assert figures["cpu_us"] > 0
                assert figures["peak_mib"] > 10
    assert found["aioraft", "read", 256, 64]["rate"] > 0
    assert found["append + fdatasync", "propose", 1, 4096]["rate"] > 0
    ElementTree.parse(tmp_path / "out" / "side-by-side.svg")
    assert [it.name for it in tmp_path.iterdir()] == ["out"]


def test_end_to_end_measures_every_step_failover_and_idle_nodes(tmp_path: pathlib.Path) -> None:
    short = (
        "--in-flight",
        "8",
        "--failovers",
        "1",
        "--idle-seconds",
        "1",
        "--dir",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
    )
    printed = run("end_to_end.py", *short)
    assert "Failover, kill -9 of the leader" in printed
    found = cells_of(tmp_path / "out" / "end-to-end.json")
    for who in ("the bare bridge", "one node in memory", "one node", "aioraft", "aioraft, on a follower"):
        assert found[who, "propose", 8, 64]["rate"] > 0
    assert found["aioraft", "propose_many", 1, 64]["rate"] > 0
    assert found["append + fdatasync", "propose", 3, 1 << 20]["rate"] > 0


def test_a_long_run_measures_memory_and_reopening(tmp_path: pathlib.Path) -> None:
    short = ("--proposals", "20000", "--entries", "10000", "--dir", str(tmp_path), "--out", str(tmp_path / "out"))
    command = [sys.executable, str(BENCHES / "long_run.py"), *short]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "long-run.json").read_text())
    assert [step["proposals"] for step in found["memory"]] == [2000 * (number + 1) for number in range(10)]
    assert all(step["resident_mib"] > 10 for step in found["memory"])
    assert found["reopening"]["entries"] == 10_000
    assert found["reopening"]["replayed_per_s"] > 0


def test_what_fails_is_a_row_that_says_so() -> None:
    load = Load(in_flight=1)
    good = {"rate": 4.0, "p50_ms": 1.0, "p99_ms": 2.0, "cpu_us": 3.0, "peak_mib": 5.0}
    rounds = [
        Cell("ours", load, good),
        Cell("theirs", load, good | {"rate": 1.0}),
        Cell("theirs", load, {"failed": "it hung"}),
        Cell("worse", load, {"failed": "it crashed"}),
    ]
    middle = report.medians(rounds)
    assert middle[1].found == good | {"rate": 1.0, "rounds": 1, "rounds_failed": 1}
    text = report.load_tables(middle, "ours")
    assert "theirs failed in 1 of 2 rounds" in text
    assert "worse failed: it crashed" in text
    assert "4x" in text


def test_a_chart_has_a_bar_for_each_value_that_is_there() -> None:
    drawn = chart.draw("<title>", ["1", "64"], [("ours", [10.0, 1000.0]), ("theirs", [None, 50.0])])
    picture = ElementTree.fromstring(drawn)
    bars = [it for it in picture.iter("{http://www.w3.org/2000/svg}rect") if it.get("width") == str(chart.BAR - 2)]
    assert len(bars) == 3


def test_tables_are_published_in_their_place(tmp_path: pathlib.Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- some: begin -->\nold\n<!-- some: end -->\nafter\n")
    report.publish("some", "new\n", page)
    assert page.read_text() == "before\n<!-- some: begin -->\n\nnew\n\n<!-- some: end -->\nafter\n"
    with pytest.raises(SystemExit, match="no place for other"):
        report.publish("other", "new", page)
    for there in (report.PAGE, report.README):
        assert "<!-- side-by-side: begin -->\n" in there.read_text()
