"""The socket a node listens on: bound here, so that nothing is open before it is known who can reach it."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket

from ._errors import ConfigError, shown
from ._members import parse_address

__all__ = ["bind", "check_listen"]


def check_listen(listen: str | socket.socket) -> str | socket.socket:
    """Return `listen` if it is "host:port", or a socket that a node can listen on."""
    if isinstance(listen, socket.socket):
        _check_socket(listen)
    else:
        parse_address("listen", listen, least_port=0)
    return listen


def _check_socket(listen: socket.socket) -> None:
    if listen.family not in (socket.AF_INET, socket.AF_INET6) or listen.type != socket.SOCK_STREAM:
        raise ConfigError(f"listen = {shown(listen)}: it must be a TCP socket over IPv4 or IPv6")
    if listen.fileno() < 0:
        raise ConfigError(
            f"listen = {shown(listen)}: the socket is closed; a node takes its socket over, so give each its own"
        )
    if listen.getsockname()[1] == 0:
        raise ConfigError(f"listen = {shown(listen)}: bind the socket first, such as to ('127.0.0.1', 0)")


async def bind(listen: str | socket.socket, *, insecure: bool) -> socket.socket:
    """Bind to `listen`, or take a bound socket as it is. The socket does not accept connections yet.

    Raises `ConfigError` if the address cannot be had, or if others than this machine can reach it and `insecure`
    is not set.
    """
    if isinstance(listen, socket.socket):
        _check_socket(listen)
        _check_reach(f"listen = {shown(listen)}", listen.getsockname()[0], insecure=insecure)
        return listen
    host, port = parse_address("listen", listen, least_port=0)
    what = f"listen = {shown(listen)}"
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"{what}: the name cannot be resolved ({error}); name an address of this machine") from error
    refused: OSError | None = None
    for family, kind, protocol, _, address in found:
        _check_reach(what, str(address[0]), insecure=insecure)
        bound = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":  # elsewhere this option would let two programs share the port
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6 and host != "::":
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind(address)
            bound.setblocking(False)
        except OSError as error:
            bound.close()
            refused = error
        else:
            return bound
    raise ConfigError(
        f"{what}: cannot be bound ({refused}); name a free address of this machine, "
        "and give `advertise` if other nodes reach it under another one"
    ) from refused


def _check_reach(what: str, host: str, *, insecure: bool) -> None:
    if insecure or _is_loopback(host):
        return
    raise ConfigError(
        f"{what} is {host}, which other machines can reach, and without TLS anyone there could read and change "
        "the data: listen on 127.0.0.1, or set Config(insecure=True) if the network itself is trusted"
    )


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
