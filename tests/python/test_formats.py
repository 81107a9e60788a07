"""tests/formats: data directories of earlier formats open, or are refused with the reason."""

from __future__ import annotations

import json
import pathlib
import tarfile
from typing import Any

import pytest

import aioraft
import make_archive
from aioraft import _core

ARCHIVES = sorted(make_archive.HERE.glob("*.tar.gz"))


def unpacked(archive: pathlib.Path, folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]]:
    """Return the data directory, and what is in it."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "data", json.loads((folder / "expected.json").read_text())


def test_there_is_an_archive_of_the_format_that_is_written_now(tmp_path: pathlib.Path) -> None:
    formats = {_core.inspect(str(unpacked(archive, tmp_path / archive.name)[0]))["format"] for archive in ARCHIVES}
    data_dir, _ = unpacked(ARCHIVES[-1], tmp_path)
    text = (data_dir / "FORMAT").read_text()
    assert text == f"aioraft data directory, format {max(formats)}\n"


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda archive: archive.name)
@pytest.mark.asyncio
async def test_a_directory_of_an_earlier_format_opens(archive: pathlib.Path, tmp_path: pathlib.Path) -> None:
    data_dir, expected = unpacked(archive, tmp_path)
    report = _core.inspect(str(data_dir))
    assert report["damage"] == []
    assert (report["node"]["id"], report["node"]["cluster"]) == (1, "archive")
    assert (report["node"]["stage"], report["node"]["boot"]) == ("formed", expected["boot"])
    assert report["membership"]["committed"]["voters"] == [1]
    assert report["membership"]["committed"]["index"] >= expected["snapshot"]
    assert report["log"]["last_index"] >= expected["applied"]
    assert [(it["index"], it["named"], it["problem"]) for it in report["snapshots"]] == [
        (expected["snapshot"], True, None)
    ]
    for more in (1, 2):  # what it writes can be opened again
        stock = make_archive.Stock()
        async with make_archive.node(data_dir, stock) as node:
            assert await node.propose(b'["nut", 1]') == expected["items"]["nut"] + more
            assert stock.items["bolt"] == expected["items"]["bolt"]
            assert node.status().boot == expected["boot"] + more
    after = _core.inspect(str(data_dir))
    assert (after["damage"], after["node"]["identity"]) == ([], report["node"]["identity"])


@pytest.mark.asyncio
async def test_a_directory_of_a_later_format_is_refused_with_the_reason(tmp_path: pathlib.Path) -> None:
    data_dir, _ = unpacked(ARCHIVES[-1], tmp_path)
    path = data_dir / "FORMAT"
    words, _, number = path.read_text().rpartition(" ")
    path.write_text(f"{words} {int(number) + 1}\n")
    before = {path: path.read_bytes() for path in data_dir.rglob("*") if path.is_file()}
    reason = f"has format {int(number) + 1}, and this aioraft reads formats up to {int(number)}: upgrade this node"
    with pytest.raises(aioraft.FatalError, match=reason):
        await make_archive.node(data_dir, make_archive.Stock()).start()
    with pytest.raises(aioraft.RaftError, match=reason):
        _core.inspect(str(data_dir))
    assert before == {path: path.read_bytes() for path in data_dir.rglob("*") if path.is_file()}
