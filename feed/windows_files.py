"""What feed.durable needs of Windows: a rename that is on the disk, and a flush."""

from __future__ import annotations

import ctypes
import functools
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

PRIVATE = "D:P(A;;FA;;;SY)(A;;FA;;;BA)"
PROTECTED_DACL = 0x80000004  # PROTECTED_DACL_SECURITY_INFORMATION | DACL_SECURITY_INFORMATION
WIN_LOCAL_SYSTEM_SID = 22  # WELL_KNOWN_SID_TYPE, winnt.h

_advapi32 = ctypes.WinDLL("advapi32", use_last_error=True)
_convert = _advapi32.ConvertStringSecurityDescriptorToSecurityDescriptorW
_convert.argtypes = (wintypes.LPCWSTR, wintypes.DWORD, ctypes.c_void_p, ctypes.c_void_p)
_advapi32.SetFileSecurityW.argtypes = (wintypes.LPCWSTR, wintypes.DWORD, ctypes.c_void_p)
_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
_kernel32.LocalFree.argtypes = (ctypes.c_void_p,)
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


def unlink(path: Path) -> None:
    """Delete a file, marked read-only or not. Raises OSError: somebody holds it open."""
    if _is_read_only(path):
        path.chmod(stat.S_IWRITE)
    path.unlink()


def make_private(path: Path) -> None:
    """Let SYSTEM and Administrators alone use a new file of SYSTEM's. Raises OSError.

    Anybody else's keeps the rights of its folder: those are its owner's already.
    """
    if not _is_system():
        return
    descriptor = ctypes.c_void_p()
    made = _convert(PRIVATE, 1, ctypes.byref(descriptor), None)
    done = made and _advapi32.SetFileSecurityW(str(path), PROTECTED_DACL, descriptor)
    error = ctypes.get_last_error()
    _kernel32.LocalFree(descriptor)
    if not done:
        raise ctypes.WinError(error)


@functools.cache
def _is_system() -> bool:
    sid, size = ctypes.create_string_buffer(68), wintypes.DWORD(68)
    member = wintypes.BOOL()
    _advapi32.CreateWellKnownSid(WIN_LOCAL_SYSTEM_SID, None, sid, ctypes.byref(size))
    _advapi32.CheckTokenMembership(None, sid, ctypes.byref(member))
    return bool(member)


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
