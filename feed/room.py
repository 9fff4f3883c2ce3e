"""A full disk, told from every other failure of it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from feed.errors import RoomError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextlib.contextmanager
def full_disk_told(what: str) -> Iterator[None]:
    """Turn an OSError that says "full" into a RoomError that names `what`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        where = f" at {error.filename}" if error.filename else ""
        raise RoomError(
            f"{what}: the disk is full{where} ({error.strerror}); nothing was replaced"
        ) from error
