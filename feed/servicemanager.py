"""What a service says to systemd (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket
import sys


def notify(state: str) -> None:
    """Tell the service manager, such as `READY=1`; silence where there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if sys.platform == "win32" or not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier,
    ):
        notifier.sendto(state.encode(), address)
