"""`aioraft bench`: a short run, and what it says when it cannot run."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from aioraft._cli._command import Status
from aioraft._cli._latencies import Latencies

CONFIGS = "import aioraft\nGOOD = aioraft.Config(election_timeout=0.5)\nSMALL = aioraft.Config(max_entry_bytes=1024)\n"


def bench(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "configs.py").write_text(CONFIGS)
    command = [sys.executable, "-m", "aioraft", "bench", "--seconds", "0.5", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)


def test_three_nodes_are_measured_and_leave_nothing(tmp_path: pathlib.Path) -> None:
    done = bench(tmp_path, "--in-flight", "16", "--config", "configs:GOOD", "--json")
    assert done.returncode == Status.OK, done.stderr
    report = json.loads(done.stdout)
    assert (report["nodes"], report["in_flight"], report["value_bytes"], report["seconds"]) == (3, 16, 64, 0.5)
    assert report["proposals"] > 0
    assert report["proposals_per_s"] == pytest.approx(report["proposals"] / 0.5)
    latencies = report["latency_ms"]
    assert 0 < latencies["p50"] <= latencies["p90"] <= latencies["p99"] <= latencies["p99.9"] <= latencies["max"]
    assert sum(count for _, count in report["histogram"]) == report["proposals"]
    assert 0 < report["fdatasync_ms"]["p50"] <= report["fdatasync_ms"]["p99"]
    assert sorted(it.name for it in tmp_path.iterdir() if it.name != "__pycache__") == ["configs.py"]


def test_for_people_there_is_a_histogram(tmp_path: pathlib.Path) -> None:
    done = bench(tmp_path, "--nodes", "1", "--in-flight", "4", "--value-bytes", "4096", "--seconds", "1.5")
    assert done.returncode == Status.OK, done.stderr
    assert "1 node, 4 in flight, 4096 bytes each, for 1.5 s" in done.stdout
    assert "p99.9" in done.stdout
    assert "#" * 40 in done.stdout
    assert "proposals answered" in done.stderr


def test_a_configuration_that_is_none_is_said_once(tmp_path: pathlib.Path) -> None:
    for name in ("configs:MISSING", "nowhere:X", "configs:aioraft"):
        done = bench(tmp_path, "--config", name)
        assert (done.returncode, done.stdout) == (Status.USAGE, "")
        assert done.stderr.startswith(f"aioraft bench: --config {name} ")
        assert len(done.stderr.splitlines()) == 1


def test_a_module_that_prints_is_in_nobodys_way(tmp_path: pathlib.Path) -> None:
    (tmp_path / "loud.py").write_text("import aioraft\nprint('settings are read')\nCONFIG = aioraft.Config()\n")
    done = bench(tmp_path, "--nodes", "1", "--in-flight", "4", "--config", "loud:CONFIG", "--json")
    assert done.returncode == Status.OK, done.stderr
    assert json.loads(done.stdout)["proposals"] > 0
    assert "settings are read" in done.stderr


def test_what_a_node_refuses_is_said(tmp_path: pathlib.Path) -> None:
    done = bench(tmp_path, "--nodes", "1", "--config", "configs:SMALL", "--value-bytes", "2000")
    assert (done.returncode, done.stdout) == (Status.REFUSED, "")
    assert "max_entry_bytes" in done.stderr


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: pathlib.Path) -> None:
    done = bench(tmp_path, "--dir", str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (Status.UNREADABLE, "")
    assert "--dir" in done.stderr


def test_ctrl_c_ends_it_and_leaves_nothing(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "aioraft", "bench", "--nodes", "1", "--seconds", "60"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        assert "proposals answered" in running.stderr.readline()  # so it is under way
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == -signal.SIGINT
    assert "Traceback" not in errors
    assert os.listdir(tmp_path) == []


def test_percentiles_are_right_to_two_per_cent() -> None:
    latencies = Latencies()
    for number in range(1, 10_001):
        latencies.add(number / 1e6)
    found = latencies.percentiles_ms(50, 99)
    assert found["p50"] == pytest.approx(5.0, rel=0.02)
    assert found["p99"] == pytest.approx(9.9, rel=0.02)
    assert found["max"] == 10.0
    assert len(latencies) == sum(count for _, count in latencies.histogram_ms()) == 10_000
