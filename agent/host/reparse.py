"""The bytes of a junction, as NTFS keeps them. Pure.

A junction is an empty folder with a reparse point: REPARSE_DATA_BUFFER with
the tag IO_REPARSE_TAG_MOUNT_POINT, [MS-FSCC] 2.1.2.5. Setting one where one is
replaces it in one step.
"""

from __future__ import annotations

import struct

TAG = 0xA0000003
SET = 0x000900A4  # FSCTL_SET_REPARSE_POINT
GET = 0x000900A8  # FSCTL_GET_REPARSE_POINT
BYTES_MAX = 16 << 10
_HEAD = struct.Struct("<IHH")  # tag, length of what follows, reserved
_NAMES = struct.Struct("<HHHH")  # offset and length of each of the two names
_NT = "\\??\\"


def packed(target: str) -> bytes:
    r"""The buffer of a junction to the absolute path `target` (C:\... without a prefix).

    Raises ValueError: not such a path.
    """
    if len(target) < 3 or target[1:3] != ":\\":
        raise ValueError(f"{target!r}: a junction leads to a folder on a drive")
    plain = target.rstrip("\\").encode("utf-16-le")
    real = _NT.encode("utf-16-le") + plain
    names = real + b"\0\0" + plain + b"\0\0"
    body = _NAMES.pack(0, len(real), len(real) + 2, len(plain)) + names
    return _HEAD.pack(TAG, len(body), 0) + body


def target_of(buffer: bytes) -> str | None:
    """The path that a buffer leads to; None: no junction, or not one to a drive."""
    if len(buffer) < _HEAD.size + _NAMES.size or _HEAD.unpack_from(buffer)[0] != TAG:
        return None
    at, size, _, _ = _NAMES.unpack_from(buffer, _HEAD.size)
    start = _HEAD.size + _NAMES.size + at
    name = buffer[start : start + size]
    if len(name) != size:
        return None
    path = name.decode("utf-16-le", "replace")
    return path.removeprefix(_NT).rstrip("\\") if path.startswith(_NT) else None
