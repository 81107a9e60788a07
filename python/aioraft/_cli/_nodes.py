"""What commands to running nodes have in common: which node is asked, and what it means when it does not do it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TypeVar

from aioraft import _core
from aioraft._admin import AdminError
from aioraft._errors import ConfigError
from aioraft._members import check_cluster, check_id, parse_address

from ._command import CommandError, Status

__all__ = ["add_node_arguments", "ask", "node_address", "node_id"]

T = TypeVar("T")

_HOPS = 3
"""How often leadership may move on while it is followed."""

_STATUSES = {
    "unreachable": Status.UNREACHABLE,
    "turned-away": Status.UNREACHABLE,
    "lost": Status.UNKNOWN,
    "unknown": Status.UNKNOWN,
    "refused": Status.REFUSED,
    "not-leader": Status.REFUSED,
    "timed-out": Status.LATE,
    "closed": Status.REFUSED,
    "unsupported": Status.REFUSED,
    "forming": Status.REFUSED,
}


def add_node_arguments(parser: argparse.ArgumentParser, *, timeout: float) -> None:
    """Say which nodes are asked, of which cluster, and for how long."""
    parser.add_argument(
        "--node",
        metavar="HOST:PORT",
        dest="nodes",
        type=_addresses,
        action="extend",
        required=True,
        help="where a node listens; several, with commas between or each behind a --node, are tried in turn",
    )
    parser.add_argument(
        "--cluster", metavar="NAME", type=_cluster, default="default", help="the cluster's name (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=timeout,
        help="give up on a node after so long (default: %(default)g)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, whose keys are in docs/operations.md"
    )


def ask(arguments: argparse.Namespace, call: Callable[[_core.AdminClient, float], T], *, changes: bool) -> T:
    """Return what the first node answers that can be asked, or the leader that it names. Raises CommandError.

    A call that `changes` something is not made again when it may have been done.
    """
    failures: list[str] = []
    for address in arguments.nodes:
        try:
            return _follow(arguments, address, call)
        except AdminError as error:
            if error.kind not in ("unreachable", "turned-away") and (changes or error.kind != "lost"):
                raise CommandError(str(error), _STATUSES[error.kind]) from error
            # A sentence that the node says does not name it.
            failures.append(f"{address}: {error}" if error.kind == "turned-away" else str(error))
    raise CommandError("; ".join(failures), Status.UNREACHABLE)


def _follow(arguments: argparse.Namespace, address: str, call: Callable[[_core.AdminClient, float], T]) -> T:
    """Ask a node, or the leader that it names."""
    reason: str | None = None
    hops = 0
    while True:
        client = _core.AdminClient(address, cluster=arguments.cluster)
        try:
            return call(client, arguments.timeout)
        except AdminError as error:
            if error.kind == "not-leader" and error.leader_address and hops < _HOPS:
                address, reason = error.leader_address, str(error)
                hops += 1
            elif reason is not None and error.kind in ("unreachable", "turned-away"):
                raise CommandError(
                    f"{reason}; that failed, so ask from its machine: {error}", Status.UNREACHABLE
                ) from error
            else:
                raise


def node_address(text: str) -> str:
    """Return an argument that is "host:port"."""
    return _checked(lambda: parse_address("HOST:PORT", text) and text)


def node_id(text: str) -> int:
    """Return an argument that is a node's id."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no node's id, which is a whole number from 1 on")
    return _checked(lambda: check_id("ID", int(text)))


def _addresses(text: str) -> list[str]:
    return [node_address(part.strip()) for part in text.split(",")]


def _cluster(text: str) -> str:
    return _checked(lambda: check_cluster(text))


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value


def _checked(check: Callable[[], T]) -> T:
    try:
        return check()
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
