r"""Settings in the Windows registry: what a key's text means, how values are spelt. Pure.

A target is `HKLM\SOFTWARE\Vendor\Engine`. A setting's name is a value of that
key, or of one below it: `Scan\Depth`. Previous values are kept as the registry
has them, type and bytes, so that what comes back is what was there, whatever
it was.
"""

from __future__ import annotations

import struct
from typing import Protocol

import msgspec

SZ = 1
EXPAND_SZ = 2
DWORD = 4
QWORD = 11

HIVES = {
    "HKLM": "HKEY_LOCAL_MACHINE",
    "HKCR": "HKEY_CLASSES_ROOT",
    "HKU": "HKEY_USERS",
}
KEY_CHARS_MAX = 255  # of one key's name; registry element size limits, Windows
VALUE_CHARS_MAX = 16383
DEPTH_MAX = 32

Value = str | int | float | bool | None


class Key(msgspec.Struct, frozen=True, order=True):
    """A key: the hive's short name, and the path below it without a leading backslash."""

    hive: str
    path: str

    def __str__(self) -> str:
        return f"{self.hive}\\{self.path}"

    def parents(self) -> tuple[Key, ...]:
        """The keys above it, the nearest first; not the hive itself."""
        parts = self.path.split("\\")
        return tuple(Key(self.hive, "\\".join(parts[:at])) for at in range(len(parts) - 1, 0, -1))


class Raw(msgspec.Struct, frozen=True):
    """A value as the registry has it."""

    type: int
    data: bytes


class Registry(Protocol):
    """What is asked of a registry. All raise OSError; what isn't there is None or fine."""

    def read(self, key: Key, name: str) -> Raw | None: ...

    def write(self, key: Key, name: str, value: Raw) -> None: ...

    def delete(self, key: Key, name: str) -> None: ...

    def exists(self, key: Key) -> bool: ...

    def delete_empty(self, key: Key) -> None: ...


def parse_key(text: str) -> Key:
    """Raises ValueError: not a key below one of the hives of the machine."""
    hive, _, path = text.partition("\\")
    short = {long: short for short, long in HIVES.items()}.get(hive.upper(), hive.upper())
    if short not in HIVES:
        raise ValueError(f"{text!r}: expected a key below {', '.join(HIVES)}")
    parts = path.split("\\")
    if len(parts) > DEPTH_MAX or not all(0 < len(part) <= KEY_CHARS_MAX for part in parts):
        raise ValueError(f"{text!r}: expected names of 1 to {KEY_CHARS_MAX} characters between \\")
    if any(not part.isprintable() for part in parts):
        raise ValueError(f"{text!r}: a key's name is one line of text")
    return Key(short, path)


def place(target: Key, setting: str) -> tuple[Key, str]:
    """The key and value that a setting means. Raises ValueError: it can't be one."""
    *below, name = setting.split("\\")
    if not 0 < len(name) <= VALUE_CHARS_MAX:
        raise ValueError(f"{setting[:80]!r}: expected a value's name after the last \\")
    return parse_key("\\".join((str(target), *below))), name


def encoded(value: str | float | bool, before: Raw | None) -> Raw:  # noqa: FBT001 - a value, not a flag
    """How a setting is written; an expandable text or a wide number stays one.

    Truth is 1 or 0, a number with a fraction is text. Raises ValueError: it fits no type.
    """
    kind = before.type if before else None
    if isinstance(value, bool):
        return Raw(DWORD, struct.pack("<I", value))
    if isinstance(value, int):
        if not 0 <= value < 1 << 64:
            raise ValueError(f"{value} isn't a number the registry holds")
        wide = kind == QWORD or value >= 1 << 32
        return (
            Raw(QWORD, struct.pack("<Q", value)) if wide else Raw(DWORD, struct.pack("<I", value))
        )
    text = (str(value) + "\0").encode("utf-16-le")
    return Raw(EXPAND_SZ if kind == EXPAND_SZ and isinstance(value, str) else SZ, text)
