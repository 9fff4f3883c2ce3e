"""Windows: two connected sockets, for one thread to wake another."""

from __future__ import annotations

import socket
import sys

if sys.platform != "win32":
    raise ImportError("other systems have pipes that can be waited for")

TRIES = 8


def pair() -> tuple[socket.socket, socket.socket]:
    """Two sockets, connected to each other and nobody else.

    Windows makes them over loopback: another program could connect in between,
    so both ends are asked who is at the other one.
    """
    for _ in range(TRIES):
        one, other = socket.socketpair()
        try:
            met = one.getsockname() == other.getpeername()
            if met and one.getpeername() == other.getsockname():
                return one, other
        except OSError:
            pass
        one.close()
        other.close()
    raise OSError("somebody else connects to this process's own sockets")
