"""What a node says reaches Python's logging, raft-rs' own records among it."""

from __future__ import annotations

import logging

import pytest

import aioraft
from aioraft.testing import Cluster
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
