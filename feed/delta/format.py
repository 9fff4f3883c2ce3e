"""Numbers and heads of the segment format, to and from bytes (docs/delta-format.md).

Pure: nothing is read or rebuilt here. Whatever a head says is held against the
limits below before anybody takes memory for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from feed.errors import RebuildError

MAGIC = b"H\x01"  # the last byte is the version
# Of a SHA-256. Enough to tell a mix-up; what decides is the signed digest. Many
# increments have less than a hundred bytes, so whole digests would double them.
BASE_CHECK_BYTES = 2
RESULT_CHECK_BYTES = 4

# More than this isn't made or rebuilt by increments: as much as a manifest may say.
SIZE_MAX = 16 << 30
# Bounds what one segment's numbers can make a reader do, and what a crash costs.
SEGMENT_BYTES_MAX = 64 << 20
# A prefix segment is rebuilt with the window of the old file (for a moment
# twice) and the result so far in memory.
PREFIX_WINDOW_MAX = 12 << 20
PREFIX_RESULT_MAX = 8 << 20
# Two heads of the longest numbers, and the table of a covers segment.
HEAD_BYTES_MAX = 256

_LAST = 0x80
_VARINT_BYTES_MAX = 9  # 63 bits
_SHORT = [bytes((value,)) for value in range(128)]


class Codec(IntEnum):
    """How a segment says its part of the result."""

    RAW = 0  # one stream of literals
    COPY = 1  # a range of the old file
    COVERS = 2  # ranges of the old file with differences, and literals between
    PREFIX = 3  # a zstd frame whose prefix is a window of the old file


class Header(NamedTuple):
    """What an increment is for. Checks are the first bytes of a SHA-256; lengths bytes."""

    base_check: bytes
    base_length: int
    result_check: bytes
    result_length: int

    def pack(self) -> bytes:
        """The header's bytes."""
        return b"".join(
            (
                MAGIC,
                self.base_check,
                self.result_check,
                varint(self.base_length),
                varint(zigzag(self.result_length - self.base_length)),
            )
        )


class Made(NamedTuple):
    """A segment as the publisher makes it; result_length in bytes."""

    codec: Codec
    result_length: int
    payload: bytes

    def pack(self, *, last: bool) -> bytes:
        """Head and payload. The last one is what remains of the result and of the file."""
        if last:
            return bytes((self.codec | _LAST,)) + self.payload
        head = bytes((self.codec,)) + varint(self.result_length) + varint(len(self.payload))
        return head + self.payload


class Segment(NamedTuple):
    """A segment's head as it is read; both lengths in bytes. The payload follows it."""

    codec: Codec
    result_length: int
    payload_length: int


def varint(value: int) -> bytes:
    """An unsigned number in groups of seven bits, lowest first (LEB128)."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def varints(values: Sequence[int]) -> bytes:
    """Many unsigned numbers behind each other."""
    if not values or max(values) < 128:
        return bytes(values)
    return b"".join([_SHORT[value] if value < 128 else varint(value) for value in values])


def zigzag(value: int) -> int:
    """A signed number as an unsigned one: 0, -1, 1, -2 … become 0, 1, 2, 3 …"""
    return value << 1 if value >= 0 else ~(value << 1)


def unzigzag(value: int) -> int:
    """The signed number that `zigzag` made unsigned."""
    return value >> 1 ^ -(value & 1)


def take_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where the next thing begins.

    Raises RebuildError: cut off, or more than 63 bits.
    """
    value = 0
    for place in range(_VARINT_BYTES_MAX):
        if at + place >= len(data):
            raise RebuildError("the incremental is truncated in a number")
        byte = data[at + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise RebuildError("a number has more than 63 bits")


def take_header(data: bytes) -> tuple[Header, int]:
    """The header at the start of `data`, and where the first segment begins.

    Raises RebuildError: another format or version, cut off, or past SIZE_MAX.
    """
    if not data.startswith(MAGIC):
        raise RebuildError(f"starts with {data[: len(MAGIC)].hex()}, not with {MAGIC.hex()}")
    first, second = len(MAGIC), len(MAGIC) + BASE_CHECK_BYTES
    base_check, result_check = data[first:second], data[second : second + RESULT_CHECK_BYTES]
    base_length, at = take_varint(data, second + RESULT_CHECK_BYTES)
    growth, at = take_varint(data, at)
    result_length = base_length + unzigzag(growth)
    if result_length < 0 or max(base_length, result_length) > SIZE_MAX:
        raise RebuildError(
            f"base of {base_length:,} and result of {result_length:,} bytes, "
            f"the limit is {SIZE_MAX:,}"
        )
    return Header(base_check, base_length, result_check, result_length), at


def take_segment(data: bytes, *, result_left: int, file_left: int) -> tuple[Segment, int]:
    """The segment's head at the start of `data`, and where its payload begins.

    result_left and file_left are the bytes that no segment before has taken,
    of the result and of the file; `data` is the latter's start.

    Raises RebuildError: cut off, an unknown codec, empty, or past the limits.
    """
    if not data:
        raise RebuildError("the incremental is truncated before a segment")
    try:
        codec = Codec(data[0] & ~_LAST)
    except ValueError:
        raise RebuildError(f"a segment's codec {data[0]} is unknown") from None
    if data[0] & _LAST:
        length, payload, at = result_left, file_left - 1, 1
    else:
        length, at = take_varint(data, 1)
        payload, at = take_varint(data, at)
    most = min(result_left, SIZE_MAX if codec is Codec.COPY else SEGMENT_BYTES_MAX)
    if not 0 < length <= most:
        raise RebuildError(f"a {codec.name} segment of {length:,} bytes, expected 1 to {most:,}")
    if payload > file_left - at:
        raise RebuildError(
            f"the incremental is truncated: {file_left - at:,} bytes of a payload of {payload:,}"
        )
    return Segment(codec, length, payload), at
