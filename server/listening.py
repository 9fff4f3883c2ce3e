"""The address that the server listens on, as sockets."""

from __future__ import annotations

import errno
import socket

from server.errors import ConfigError

BACKLOG = 2048


def sockets(listen: str) -> list[socket.socket]:
    """Listening sockets for `address:port`; port 0 takes a free one.

    `[::]` takes both address families where the machine has both.
    Raises ConfigError: taken, not this machine's, or not allowed.
    """
    host, _, port = listen.rpartition(":")
    address = host.strip("[]")
    try:
        return [_listen(address, int(port))]
    except OSError as error:
        if address == "::" and error.errno in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
            return sockets(f"0.0.0.0:{port}")  # a machine without IPv6
        raise ConfigError(
            f"listen = {listen!r}: {error.strerror or error}; "
            "choose another address or port (serverctl run --listen)"
        ) from error


def _listen(address: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, place = found[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            both = address == "::" and socket.has_dualstack_ipv6()
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not both))
        made.bind(place)
        made.listen(BACKLOG)
        made.setblocking(False)  # noqa: FBT003 - its own signature
    except OSError:
        made.close()
        raise
    return made


def port_of(made: socket.socket) -> int:
    """The port that a listening socket has got."""
    port: int = made.getsockname()[1]
    return port
