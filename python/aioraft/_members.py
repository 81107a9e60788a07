"""Checks of what names a node and its cluster: ids, addresses, the cluster's name, the data directory."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping

from ._errors import ConfigError, shown

__all__ = [
    "canonical",
    "check_cluster",
    "check_data_dir",
    "check_id",
    "check_members",
    "check_reachable",
    "is_utf8",
    "parse_address",
]

_NAME = re.compile(r"(?=.{1,253}\Z)(?!-)[A-Za-z0-9_-]{1,63}(\.(?!-)[A-Za-z0-9_-]{1,63})*\.?\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")
_ID = re.compile(r"[1-9][0-9]{0,17}\Z")
_MAX_ID = 2**63 - 1
_MAX_CLUSTER_BYTES = 255


def parse_address(what: str, address: object, *, least_port: int = 1) -> tuple[str, int]:
    """Split "host:port" or "[ipv6]:port"; `what` names the argument in the `ConfigError`."""
    right = 'it must be "host:port", such as "10.0.0.1:7400", "node-1.example:7400" or "[fd00::1]:7400"'
    given = f"{what} = {shown(address)}"
    if not isinstance(address, str):
        raise ConfigError(f"{given}: {right}")
    if "/" in address:
        raise ConfigError(f"{given} has a scheme or a path: {right}")
    host, colon, port = address.rpartition(":")
    if not colon:
        raise ConfigError(f"{given} has no port: {right}")
    if not (_PORT.match(port) and least_port <= int(port) <= 65535):
        raise ConfigError(f"{given}: the port must be a number from {least_port} to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ip(host, version=6):
            raise ConfigError(f"{given}: what stands in brackets must be an IPv6 address")
    elif _is_ip(host, version=6):
        raise ConfigError(f'{given}: an IPv6 address needs brackets, such as "[{host}]:{port}"')
    elif not _NAME.match(host) or (host.replace(".", "").isdigit() and not _is_ip(host, version=4)):
        raise ConfigError(f"{given}: {shown(host)} is neither an IP address nor a host name; {right}")
    return host, int(port)


def check_reachable(what: str, address: object) -> tuple[str, int]:
    """Split an address that other nodes are to dial."""
    host, port = parse_address(what, address)
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return host, port
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    if (mapped or found).is_unspecified:
        raise ConfigError(
            f"{what} = {shown(address)}: {host} stands for all addresses of a machine, so no other node can dial "
            f'it; name one at which they reach this node, and give listen="{address}" to accept connections on all'
        )
    if (mapped or found).is_multicast or str(mapped or found) == "255.255.255.255":
        raise ConfigError(f"{what} = {shown(address)}: {host} is the address of many, and a node needs one of its own")
    return host, port


def check_id(what: str, value: object) -> int:
    """Return `value` if it can be a node's id."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_ID:
        hint = f"; {value!r} is a text, the number is {value}" if isinstance(value, str) and _ID.match(value) else ""
        raise ConfigError(f"{what} = {shown(value)}: a node's id must be a whole number from 1 to 2**63 - 1{hint}")
    return value


def check_members(node_id: int, members: Mapping[int, str]) -> dict[int, str]:
    """Return a copy of `members` if it can bootstrap a cluster with `node_id` in it."""
    if not isinstance(members, Mapping):
        raise ConfigError(
            f"members = {shown(members)}: it must map node ids to addresses, "
            'such as {1: "10.0.0.1:7400", 2: "10.0.0.2:7400"}'
        )
    if not members:
        raise ConfigError(
            f"members = {members!r} is empty: it must hold the address of every node of the cluster, "
            f'of this one (id = {node_id}) too, such as {{{node_id}: "10.0.0.1:7400"}}'
        )
    checked: dict[int, str] = {}
    owners: dict[tuple[str, int], int] = {}
    for key, address in members.items():
        member = check_id("a key of members", key)
        host, port = check_reachable(f"members[{member}]", address)
        where = (canonical(host), port)
        if where in owners:
            raise ConfigError(
                f"members[{member}] = {shown(address)} is the address of member {owners[where]} as well: "
                "each node needs an address of its own"
            )
        owners[where] = member
        checked[member] = address
    if node_id not in checked:
        raise ConfigError(
            f"id = {node_id} is not in members, which has {shown(sorted(checked))}: "
            "a node is a member of its own cluster"
        )
    return checked


def check_cluster(name: object) -> str:
    """Return `name` if it can name a cluster."""
    if not isinstance(name, str) or not is_utf8(name) or not 1 <= len(name.encode()) <= _MAX_CLUSTER_BYTES:
        raise ConfigError(f"cluster = {shown(name)}: it must be a text of 1 to {_MAX_CLUSTER_BYTES} bytes in UTF-8")
    return name


def check_data_dir(data_dir: str | os.PathLike[str] | None) -> str | None:
    """Return an absolute path, or None for a log in memory."""
    if data_dir is None:
        return None
    path = os.fspath(data_dir) if isinstance(data_dir, (str, os.PathLike)) else None
    if not isinstance(path, str) or not path or "\0" in path or not is_utf8(path):
        raise ConfigError(
            f"data_dir = {shown(data_dir)}: it must be the path of a directory, as text, or None for a log in memory"
        )
    return os.path.abspath(path)


def _is_ip(host: str, *, version: int) -> bool:
    try:
        return ipaddress.ip_address(host).version == version
    except ValueError:
        return False


def is_utf8(text: str) -> bool:
    """Whether `text` can be written in UTF-8: not with a lone surrogate in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def canonical(host: str) -> str:
    """Return `host` as it is compared: one text for one name or address, however it is written."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.rstrip(".").lower()
