"""One server a state folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from server.errors import BusyError


@contextlib.contextmanager
def hold(lock: Path) -> Iterator[None]:
    """Hold the state folder; the kernel lets go when the process ends, however it does.

    Raises BusyError: another server has it.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BusyError(
            f"{lock.parent} is another server's, which runs; serverctl status shows it"
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)
