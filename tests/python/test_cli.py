"""The command `aioraft`: what holds for all of its commands."""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import sys

import pytest

import aioraft
from aioraft import _cli
from aioraft._cli._command import CommandError, Status

OPERATIONS = pathlib.Path(__file__).parents[2] / "docs" / "operations.md"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "aioraft", *arguments], capture_output=True, text=True, timeout=60)


def test_it_is_installed_under_its_name() -> None:
    script = pathlib.Path(sys.executable).with_name("aioraft")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"aioraft {aioraft.__version__}\n")


def test_each_help_and_the_documentation_say_what_the_exit_statuses_mean() -> None:
    documented = OPERATIONS.read_text()
    helps = [command("--help"), *(command(it.name, "--help") for it in _cli._COMMANDS)]
    for said in helps:
        assert (said.returncode, said.stderr) == (0, "")
        for status in Status:
            assert f"\n  {status.value}  {status.meaning}\n" in said.stdout
    for status in Status:
        assert f"| {status.value} | {status.meaning} |" in documented
    for it in _cli._COMMANDS:
        assert it.name in helps[0].stdout
        assert f"aioraft {it.name}" in documented


@pytest.mark.parametrize(
    "arguments", [(), ("unheard-of",), ("inspect",), ("inspect", "a", "b"), ("inspect", "--js", "a")]
)
def test_wrong_arguments_are_said_with_how_it_is_used(arguments: tuple[str, ...]) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (Status.USAGE, "")
    assert done.stderr.startswith("usage: aioraft")


def test_what_a_command_raises_is_a_sentence_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> Status:
        raise CommandError("it is broken: mend it", Status.UNREADABLE)

    monkeypatch.setattr(_cli, "_COMMANDS", (dataclasses.replace(_cli._inspect.COMMAND, run=fail),))
    assert _cli.main(["inspect", "somewhere"]) == Status.UNREADABLE
    assert capsys.readouterr().err == "aioraft inspect: it is broken: mend it\n"


def test_importing_it_starts_nothing() -> None:
    program = (
        "import sys, threading; import aioraft; before = set(sys.modules); import aioraft._cli; "
        "print(threading.active_count(), sorted(it for it in set(sys.modules) - before if 'aioraft' not in it))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    threads, _, imported = done.stdout.strip().partition(" ")
    assert threads == "1"
    assert set(eval(imported)) <= {
        "argparse",
        "gettext",
        "locale",
        "_locale",
        "json",
        "json.decoder",
        "json.encoder",
        "json.scanner",
        "_json",
    }
