"""Disks that go wrong when a test says so: what stands beside `disk_shim.c`."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def can_build_shim() -> bool:
    """Whether this machine can: it needs Linux and a C compiler."""
    return sys.platform.startswith("linux") and _compiler() is not None


def build_shim(folder: pathlib.Path) -> pathlib.Path:
    """Compile the library to preload."""
    return compile_shim("disk_shim", folder)


def compile_shim(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Compile a library to preload; its source stands beside this file."""
    compiler = _compiler()
    assert compiler is not None
    library = folder / f"{name}.so"
    subprocess.run(
        [compiler, "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", library, HERE / f"{name}.c", "-ldl"],
        check=True,
    )
    return library


def preload(shim: pathlib.Path, folder: pathlib.Path) -> dict[str, str]:
    """Return the environment of processes whose disks are the directories in `folder`."""
    return {"LD_PRELOAD": str(shim), "AIORAFT_TEST_DISKS": str(folder)}


def _compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


class Disks:
    """The disks of the processes that a test starts, one per directory in `folder`; see `disk_shim.c`."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder

    def fail(self, disk: str, *faults: str) -> None:
        """From now on, `disk` has these faults."""
        unfinished = self.folder / f"{disk}.new"
        unfinished.write_text("".join(fault + "\n" for fault in faults))
        unfinished.rename(self.folder / f"{disk}.faults")

    def mend(self, disk: str) -> None:
        (self.folder / f"{disk}.faults").unlink()

    def was_hit(self, disk: str) -> bool:
        return (self.folder / f"{disk}.hits").exists()
