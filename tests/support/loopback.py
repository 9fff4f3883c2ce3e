"""Keep the tests on this machine: sockets connect to loopback or not at all.

Covers the process that runs the tests; a process that a test starts is on its
own, and gets addresses of this machine from the test.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

_connect = socket.socket.connect
_connect_ex = socket.socket.connect_ex


class LeftTheMachineError(Exception):
    """A test tried to reach the network.

    Not an OSError: code under test would take it for an unreachable source.
    """


def only() -> None:
    """From now on connecting to anything but loopback raises LeftTheMachineError."""

    def connect(self: socket.socket, address: Any) -> None:
        _refuse(self, address)
        _connect(self, address)

    def connect_ex(self: socket.socket, address: Any) -> int:
        _refuse(self, address)
        return _connect_ex(self, address)

    patched: Any = socket.socket
    patched.connect, patched.connect_ex = connect, connect_ex


def _refuse(connecting: socket.socket, address: Any) -> None:
    if connecting.family not in (socket.AF_INET, socket.AF_INET6) or _is_loopback(address[0]):
        return
    connecting.close()  # nobody else will: callers expect an OSError
    raise LeftTheMachineError(f"a test tried to connect to {address[0]!r} port {address[1]}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
