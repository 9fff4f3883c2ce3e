"""Windows: values in the registry, type and bytes as they are, in the 64-bit view."""

from __future__ import annotations

import ctypes
import sys
import winreg
from ctypes import wintypes

from agent.host.registry import HIVES, Key, Raw

if sys.platform != "win32":
    raise ImportError("there is no registry elsewhere")

_FOUND, _MISSING, _MORE = 0, (2, 3), 234  # ERROR_FILE_NOT_FOUND, _PATH_NOT_FOUND, _MORE_DATA
_VIEW = winreg.KEY_WOW64_64KEY
VALUE_BYTES_MAX = 1 << 20

_advapi32 = ctypes.WinDLL("advapi32")
_query = _advapi32.RegQueryValueExW
_query.argtypes = (
    wintypes.HKEY, wintypes.LPCWSTR, ctypes.c_void_p, ctypes.POINTER(wintypes.DWORD),
    ctypes.c_char_p, ctypes.POINTER(wintypes.DWORD),
)  # fmt: skip
_set = _advapi32.RegSetValueExW
_set.argtypes = (
    wintypes.HKEY, wintypes.LPCWSTR, wintypes.DWORD, wintypes.DWORD,
    ctypes.c_char_p, wintypes.DWORD,
)  # fmt: skip


class MachineRegistry:
    """See agent.host.registry.Registry. What is written is flushed before it returns."""

    def read(self, key: Key, name: str) -> Raw | None:
        """A value; None: it, or its key, isn't there. Raises OSError: larger than 1 MiB."""
        try:
            opened = winreg.OpenKey(_hive(key), key.path, 0, winreg.KEY_QUERY_VALUE | _VIEW)
        except FileNotFoundError:
            return None
        with opened:
            buffer = ctypes.create_string_buffer(VALUE_BYTES_MAX)
            kind, size = wintypes.DWORD(), wintypes.DWORD(VALUE_BYTES_MAX)
            status = _query(
                opened.handle, name, None, ctypes.byref(kind), buffer, ctypes.byref(size)
            )
            if status in _MISSING:
                return None
            _check(status, key)
            return Raw(kind.value, buffer.raw[: size.value])

    def write(self, key: Key, name: str, value: Raw) -> None:
        """Make the key if it isn't there."""
        access = winreg.KEY_SET_VALUE | _VIEW
        with winreg.CreateKeyEx(_hive(key), key.path, 0, access) as opened:
            _check(_set(opened.handle, name, 0, value.type, value.data, len(value.data)), key)
            winreg.FlushKey(opened)

    def delete(self, key: Key, name: str) -> None:
        """Missing is fine."""
        try:
            access = winreg.KEY_SET_VALUE | _VIEW
            with winreg.OpenKey(_hive(key), key.path, 0, access) as opened:
                winreg.DeleteValue(opened, name)
                winreg.FlushKey(opened)
        except FileNotFoundError:
            return

    def exists(self, key: Key) -> bool:
        """Whether the key is there."""
        try:
            winreg.OpenKey(_hive(key), key.path, 0, winreg.KEY_QUERY_VALUE | _VIEW).Close()
        except FileNotFoundError:
            return False
        return True

    def delete_empty(self, key: Key) -> None:
        """Take a key away that holds nothing; one that holds something stays."""
        try:
            with winreg.OpenKey(_hive(key), key.path, 0, winreg.KEY_READ | _VIEW) as opened:
                keys, values, _ = winreg.QueryInfoKey(opened)
            if not keys and not values:
                winreg.DeleteKeyEx(_hive(key), key.path, _VIEW, 0)
        except FileNotFoundError:
            return


def _hive(key: Key) -> int:
    return int(getattr(winreg, HIVES[key.hive]))


def _check(status: int, key: Key) -> None:
    if status != _FOUND:
        raise OSError(None, ctypes.FormatError(status), str(key), status)
