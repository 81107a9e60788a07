"""Checks of what names a cluster: ids, addresses, the cluster's name."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

from ._errors import ConfigError

__all__ = ["check_cluster", "check_id", "check_members", "parse_address"]

_NAME = re.compile(r"(?=.{1,253}\Z)(?!-)[A-Za-z0-9_-]{1,63}(\.(?!-)[A-Za-z0-9_-]{1,63})*\.?\Z")
_MAX_ID = 2**63 - 1
_MAX_CLUSTER_BYTES = 255


def parse_address(what: str, address: object, *, least_port: int = 1) -> tuple[str, int]:
    """Split "host:port" or "[ipv6]:port"; `what` names the argument in the `ConfigError`."""
    right = 'it must be "host:port", such as "10.0.0.1:7400", "node-1.example:7400" or "[fd00::1]:7400"'
    if not isinstance(address, str):
        raise ConfigError(f"{what} = {address!r}: {right}")
    host, colon, port = address.rpartition(":")
    if not colon:
        raise ConfigError(f"{what} = {address!r} has no port: {right}")
    if not (port.isascii() and port.isdigit() and least_port <= int(port) <= 65535):
        raise ConfigError(f"{what} = {address!r}: the port must be a number from {least_port} to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ip(host, version=6):
            raise ConfigError(f"{what} = {address!r}: what stands in brackets must be an IPv6 address")
    elif ":" in host:
        raise ConfigError(f'{what} = {address!r}: an IPv6 address needs brackets, such as "[{host}]:{port}"')
    elif not _NAME.match(host) or (host.replace(".", "").isdigit() and not _is_ip(host, version=4)):
        raise ConfigError(f"{what} = {address!r}: {host!r} is neither an IP address nor a host name; {right}")
    return host, int(port)


def check_id(what: str, value: object) -> int:
    """Return `value` if it can be a node's id."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_ID:
        raise ConfigError(f"{what} = {value!r}: a node's id must be a whole number from 1 to 2**63 - 1")
    return value


def check_members(node_id: int, members: Mapping[int, str]) -> dict[int, str]:
    """Return a copy of `members` if it can bootstrap a cluster with `node_id` in it."""
    if not isinstance(members, Mapping):
        raise ConfigError(
            f"members = {members!r}: it must map node ids to addresses, "
            'such as {1: "10.0.0.1:7400", 2: "10.0.0.2:7400"}'
        )
    checked: dict[int, str] = {}
    owners: dict[tuple[str, int], int] = {}
    for key, address in members.items():
        member = check_id("a key of members", key)
        host, port = parse_address(f"members[{member}]", address)
        where = (_canonical(host), port)
        if where in owners:
            raise ConfigError(
                f"members[{member}] = {address!r} is the address of member {owners[where]} as well: "
                "each node needs an address of its own"
            )
        owners[where] = member
        checked[member] = address
    if node_id not in checked:
        raise ConfigError(
            f"id = {node_id} is not in members, which has {sorted(checked)}: a node is a member of its own cluster"
        )
    return checked


def check_cluster(name: object) -> str:
    """Return `name` if it can name a cluster."""
    if not isinstance(name, str) or not 1 <= len(name.encode("utf-8", "replace")) <= _MAX_CLUSTER_BYTES:
        raise ConfigError(f"cluster = {name!r}: it must be a text of 1 to {_MAX_CLUSTER_BYTES} bytes")
    return name


def _is_ip(host: str, *, version: int) -> bool:
    try:
        return ipaddress.ip_address(host).version == version
    except ValueError:
        return False


def _canonical(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.rstrip(".").lower()
