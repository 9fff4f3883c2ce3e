"""The numbers of a stream, decoded as far as they are used (docs/delta-format.md).

Most have one byte; those are taken over without a step of Python for each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain

from feed.delta.streams import Unpacking
from feed.errors import RebuildError

_BATCH_BYTES = 8 << 10
_BITS_MAX = 63
_LONG_SHARE = 1 / 16  # of the bytes; with more, a search for them doesn't pay
_LONG = re.compile(rb"[\x80-\xff]+[\0-\x7f]")
_LONG_BYTES = bytes(range(128, 256))


def numbers(stream: Unpacking) -> Iterator[int]:
    """One after the other. Raises RebuildError: malformed, or cut off."""
    return chain.from_iterable(batches(stream))


def batches(stream: Unpacking) -> Iterator[Sequence[int]]:
    """The numbers in batches of at most 8 Ki. Raises RebuildError: malformed, or cut off."""
    rest = b""
    while stream.left:
        data = rest + stream.read(min(stream.left, _BATCH_BYTES - len(rest)))
        whole = len(data.rstrip(_LONG_BYTES))
        data, rest = data[:whole], data[whole:]
        if len(rest) * 7 >= _BITS_MAX:
            raise RebuildError(f"a number has more than {_BITS_MAX} bits")
        yield data if data.isascii() else _decoded(data)
    if rest:
        raise RebuildError("a stream ends inside a number")


def _decoded(data: bytes) -> list[int]:
    """The numbers of `data`, which doesn't end inside one."""
    short = data.translate(None, _LONG_BYTES)
    if len(data) - len(short) > len(data) * _LONG_SHARE:
        return _each(data)
    found: list[int] = []
    last = 0
    for long in _LONG.finditer(data):
        first, end = long.span()
        found += data[last:first]
        found.append(_number(long.group()))
        last = end
    found += data[last:]
    return found


def _each(data: bytes) -> list[int]:
    """The same, byte by byte: quicker where long numbers are many."""
    found: list[int] = []
    value = shift = 0
    for byte in data:
        if byte < 128:
            found.append(value | byte << shift)
            value = shift = 0
        else:
            value |= (byte & 127) << shift
            shift += 7
            if shift >= _BITS_MAX:
                raise RebuildError(f"a number has more than {_BITS_MAX} bits")
    return found


def _number(data: bytes) -> int:
    if len(data) * 7 > _BITS_MAX:
        raise RebuildError(f"a number has more than {_BITS_MAX} bits")
    value = 0
    for byte in reversed(data):
        value = value << 7 | byte & 127
    return value
