"""Looks into the newest wheel: what must be in it is, and its stub is the committed one."""

from __future__ import annotations

import pathlib
import sys
import zipfile

ROOT = pathlib.Path(__file__).parents[1]
EXPECTED = (
    "aioraft/__init__.py",
    "aioraft/_core.abi3.so",
    "aioraft/_core.pyi",
    "aioraft/_cli/__init__.py",
    "aioraft/py.typed",
)


def main() -> None:
    wheels = sorted(pathlib.Path(sys.argv[1]).glob("aioraft-*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        sys.exit(f"there is no wheel in {sys.argv[1]}")
    with zipfile.ZipFile(wheels[-1]) as wheel:
        missing = [name for name in EXPECTED if name not in wheel.namelist()]
        if missing:
            sys.exit(f"{wheels[-1]} lacks {', '.join(missing)}")
        if wheel.read("aioraft/_core.pyi") != (ROOT / "stubs/aioraft/_core.pyi").read_bytes():
            sys.exit(f"{wheels[-1]} holds another stub than stubs/aioraft/_core.pyi")
        licenses = [name for name in wheel.namelist() if name.endswith("LICENSE")]
        if not licenses:
            sys.exit(f"{wheels[-1]} has no LICENSE")
    print(f"{wheels[-1]} holds what it should")


if __name__ == "__main__":
    main()
