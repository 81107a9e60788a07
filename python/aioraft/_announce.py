"""What a node says of itself when it has started."""

from __future__ import annotations

import logging

__all__ = ["announce", "announce_memory", "announce_whole_log"]

_log = logging.getLogger("aioraft.node")
_has_warned_of_memory = False


def announce(node_id: int, cluster: str, address: str, *, insecure: bool) -> None:
    """Say where a node listens, and that others can reach it."""
    _say(logging.INFO, node_id, f"node {node_id} of cluster {cluster!r} listens on {address}")
    if insecure:
        _say(
            logging.WARNING,
            node_id,
            f"node {node_id} listens on {address} without TLS (insecure=True): whoever reaches it can read and change "
            "the data",
        )


def announce_memory(node_id: int, *, is_meant: bool) -> None:
    """Warn once in a process, and not at all where memory is meant: a test has many such nodes."""
    global _has_warned_of_memory
    level = logging.INFO if is_meant or _has_warned_of_memory else logging.WARNING
    _has_warned_of_memory |= level == logging.WARNING
    _say(
        level,
        node_id,
        f"node {node_id} keeps its log in memory: what it knows is gone when it stops, and it cannot come back under "
        "its id",
    )


def announce_whole_log(node_id: int) -> None:
    """Say that the log of a state machine without snapshots is never compacted."""
    _say(
        logging.INFO,
        node_id,
        f"the state machine of node {node_id} has no snapshot(), so its log is kept whole and applied from its "
        "beginning at each start",
    )


def _say(level: int, node_id: int, message: str) -> None:
    _log.log(level, "%s", message, extra={"aioraft": {"node": node_id}})
