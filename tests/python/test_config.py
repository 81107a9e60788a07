"""aioraft.Config: every field is checked, with an error that names it, its value, and what would be right."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

import aioraft
from aioraft._errors import shown

SECONDS = ["election_timeout", "heartbeat_interval", "close_timeout"]
SECONDS += ["propose_timeout", "read_timeout", "membership_timeout"]
OPTIONAL = ["snapshot_entries", "snapshot_bytes"]
OTHERS = ["insecure", "admin_from"]
COUNTS = [field.name for field in dataclasses.fields(aioraft.Config) if field.name not in [*SECONDS, *OTHERS]]


def test_defaults_are_valid_and_frozen() -> None:
    config = aioraft.Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.insecure = True  # type: ignore[misc]


@pytest.mark.parametrize("field", SECONDS)
@pytest.mark.parametrize("value", ["1", True, -1, math.nan, math.inf, 10**5000, b""], ids=shown)
def test_seconds_are_checked(field: str, value: Any) -> None:
    with pytest.raises(aioraft.ConfigError, match=rf"Config\.{field} = .*seconds"):
        aioraft.Config(**{field: value})


@pytest.mark.parametrize("field", COUNTS)
@pytest.mark.parametrize("value", [1.5, "1", True, -1, None, 2**60, 10**5000], ids=shown)
def test_counts_are_checked(field: str, value: Any) -> None:
    if value is None and field in OPTIONAL:
        assert getattr(aioraft.Config(**{field: value}), field) is None  # type: ignore[arg-type]
        return
    with pytest.raises(aioraft.ConfigError, match=rf"Config\.{field} = .*whole number"):
        aioraft.Config(**{field: value})


def test_only_deadlines_and_what_may_never_come_may_be_none() -> None:
    aioraft.Config(propose_timeout=None, read_timeout=None)
    aioraft.Config(snapshot_entries=None, snapshot_bytes=None)
    with pytest.raises(aioraft.ConfigError, match=r"snapshot_bytes = 1: .* or None"):
        aioraft.Config(snapshot_bytes=1)
    with pytest.raises(aioraft.ConfigError, match=r"close_timeout = None"):
        aioraft.Config(close_timeout=None)  # type: ignore[arg-type]


def test_insecure_is_a_decision() -> None:
    with pytest.raises(aioraft.ConfigError, match="insecure = 1"):
        aioraft.Config(insecure=1)  # type: ignore[arg-type]


def test_where_operators_may_come_from_is_one_of_two() -> None:
    assert aioraft.Config().admin_from == "localhost"
    assert aioraft.Config(admin_from="anywhere").admin_from == "anywhere"
    for value in ("loopback", "", None, True):
        with pytest.raises(aioraft.ConfigError, match=r"Config\.admin_from = .*'localhost' or 'anywhere'"):
            aioraft.Config(admin_from=value)  # type: ignore[arg-type]


def test_an_election_takes_several_lost_heartbeats() -> None:
    with pytest.raises(aioraft.ConfigError, match=r"election_timeout = 0\.2 .* at least 0\.3"):
        aioraft.Config(election_timeout=0.2)


@pytest.mark.parametrize("limit", ["max_pending_bytes", "max_uncommitted_bytes"])
def test_the_longest_command_fits(limit: str) -> None:
    with pytest.raises(aioraft.ConfigError, match=rf"Config\.{limit} = 4096 .* at least 8388608"):
        aioraft.Config(**{limit: 4096})  # type: ignore[arg-type]
