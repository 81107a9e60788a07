"""What the documents show: their fenced blocks, to be run as they stand."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def blocks(document: str, language: str) -> list[str]:
    """Return the blocks of `language` in a document, in order."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(document: str) -> list[str]:
    """Return the lines of a document's shell blocks, without their comments."""
    lines = "".join(blocks(document, "sh")).splitlines()
    return [command for line in lines if (command := line.partition("#")[0].strip())]


def check_types(program: str, folder: pathlib.Path) -> None:
    """Have `mypy --strict` look at a program."""
    file = folder / "program.py"
    file.write_text(program, encoding="utf-8")
    arguments = ["--strict", "--cache-dir", str(ROOT / ".mypy_cache"), str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *arguments],
        cwd=ROOT / "python",
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
