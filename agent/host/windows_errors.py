"""Windows: pywin32's errors as the OSErrors they are."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pywintypes

if sys.platform != "win32":
    raise ImportError("there is no pywin32 elsewhere")


@contextlib.contextmanager
def as_os_error(where: Path | str | None = None) -> Iterator[None]:
    """Let pywin32's errors pass as the OSErrors they are."""
    try:
        yield
    except pywintypes.error as error:
        told = OSError(None, error.strerror, str(where) if where else None, error.winerror)
        raise told from error
