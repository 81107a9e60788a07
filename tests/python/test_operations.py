"""docs/operations.md, walked through as an operator would: every command of it runs."""

from __future__ import annotations

import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from test_cli import OPERATIONS

ROOT = OPERATIONS.parent.parent
DEADLINE = 60.0


class Walk:
    """The operator: terminals, and the addresses that the documentation's stand for."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.nodes: dict[int, subprocess.Popen[str]] = {}
        self.ports: dict[str, int] = {}
        self.sockets: list[socket.socket] = []

    def here(self, line: str) -> str:
        return re.sub(r"127\.0\.0\.1:(74\d\d)", lambda found: f"127.0.0.1:{self.port(found[1])}", line)

    def port(self, name: str) -> int:
        if name not in self.ports:
            probe = socket.socket()
            probe.bind(("127.0.0.1", 0))
            self.ports[name] = probe.getsockname()[1]
            probe.close()
        return self.ports[name]

    def do(self, line: str) -> None:
        if found := re.fullmatch(r"python (examples/operated\.py) (\d+) (.*)", line):
            self.start(int(found[2]), [str(ROOT / found[1]), found[2], *found[3].split()])
        elif found := re.fullmatch(r"(kill -9|Ctrl-C) node (\d+)", line):
            self.end(int(found[2]), signal.SIGKILL if found[1] == "kill -9" else signal.SIGINT)
        else:
            assert line.startswith("aioraft "), line
            self.command(line.split()[1:])

    def start(self, number: int, arguments: list[str]) -> None:
        self.nodes[number] = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert self.said(number) == f"node {number} runs\n"

    def end(self, number: int, how: signal.Signals) -> None:
        node = self.nodes.pop(number)
        node.send_signal(how)
        node.communicate(timeout=DEADLINE)

    def command(self, arguments: list[str]) -> None:
        """Run it; what depends on a leader is asked again until there is one."""
        until = time.monotonic() + DEADLINE
        while True:
            done = subprocess.run(
                [sys.executable, "-m", "aioraft", *arguments],
                cwd=self.path,
                capture_output=True,
                text=True,
                timeout=DEADLINE,
                check=False,
            )
            if done.returncode == 0:
                return
            no_leader = arguments[0] == "status" and done.returncode in (1, 4)
            assert no_leader, (arguments, done)
            assert time.monotonic() < until, (arguments, done)

    def said(self, number: int) -> str:
        stdout = self.nodes[number].stdout
        assert stdout is not None
        assert select.select([stdout], [], [], DEADLINE)[0], f"node {number} says nothing"
        return stdout.readline()

    def add(self, number: int, amount: int) -> int:
        node = self.nodes[number]
        assert node.stdin is not None
        node.stdin.write(f"{amount}\n")
        node.stdin.flush()
        said = self.said(number)
        assert said.startswith("sum "), said
        return int(said.split()[1])


@pytest.fixture
def walk(tmp_path: pathlib.Path) -> Iterator[Walk]:
    walk = Walk(tmp_path)
    yield walk
    for node in walk.nodes.values():
        node.kill()
        node.communicate()


def chapters() -> list[list[str]]:
    text = OPERATIONS.read_text()
    section = text[text.index("\n## A walk through") :]
    section = section[: section.index("\n## ", 1)]
    blocks = re.findall(r"(?:^    .+\n)+", section, re.MULTILINE)
    return [[line.strip() for line in block.splitlines()] for block in blocks]


@pytest.mark.timeout(300)
def test_the_walk_through(walk: Walk) -> None:
    found, grow, replace, restart, shrink, lose = chapters()
    chapter_and_node = ((found, 3), (grow, 5), (replace, 6), (restart, 3), (shrink, 4), (lose, 8))
    for total, (chapter, asked) in enumerate(chapter_and_node, start=1):
        for line in chapter:
            walk.do(walk.here(line))
        assert walk.add(asked, 1) == total, chapter
    assert walk.nodes[5].wait(DEADLINE) == 0
    assert walk.nodes[6].wait(DEADLINE) == 0
    assert "was removed" in (walk.nodes[5].stdout or sys.stdin).read()
