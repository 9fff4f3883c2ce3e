"""What feed.durable needs of Windows: a rename that is on the disk, and a flush."""

from __future__ import annotations

import ctypes
import os
import stat
import sys
import time
from ctypes import wintypes
from pathlib import Path

if sys.platform != "win32":
    raise ImportError("this is Windows' part of feed.durable")

MOVEFILE_REPLACE_EXISTING = 0x1
MOVEFILE_DELAY_UNTIL_REBOOT = 0x4
MOVEFILE_WRITE_THROUGH = 0x8
IN_USE = frozenset({5, 32})  # ERROR_ACCESS_DENIED, ERROR_SHARING_VIOLATION
WAITS_S = (0.02, 0.05, 0.1, 0.2)  # a virus scanner or an indexer looks at each new file

_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
_move_file = _kernel32.MoveFileExW
_move_file.argtypes = (wintypes.LPCWSTR, wintypes.LPCWSTR, wintypes.DWORD)
_move_file.restype = wintypes.BOOL


def move(source: Path, target: Path) -> None:
    """Rename over `target` in one step; returns once the file system's log is on the disk.

    A target that is marked read-only is replaced too, as on other systems.
    Raises OSError: PermissionError where somebody holds `target` open.
    """
    flags = MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH
    for wait_s in (*WAITS_S, None):
        if _move_file(str(source), str(target), flags):
            return
        error = ctypes.get_last_error()
        if error not in IN_USE or wait_s is None:
            raise ctypes.WinError(error)
        if target.is_file() and _is_read_only(target):
            target.chmod(stat.S_IWRITE)
        else:
            time.sleep(wait_s)


def delete_at_boot(path: Path) -> bool:
    """Have Windows delete `path` before anything opens it again; False: not allowed to ask."""
    return bool(_move_file(str(path), None, MOVEFILE_DELAY_UNTIL_REBOOT))


def flush(path: Path) -> None:
    """Flush a file's content; its read-only mark is taken off meanwhile: Windows asks for it."""
    read_only = _is_read_only(path)
    if read_only:
        path.chmod(stat.S_IWRITE)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_BINARY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    finally:
        if read_only:
            path.chmod(stat.S_IREAD)


def _is_read_only(path: Path) -> bool:
    return bool(path.lstat().st_file_attributes & stat.FILE_ATTRIBUTE_READONLY)
