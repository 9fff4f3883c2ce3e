"""Rebuild from a standard BSDIFF40 stream (Colin Percival's bsdiff 4.x).

Increments aren't made in this format any more; feeds that were published with
it, and other tools' patches, are still applied, in bounded memory: the base is
read by position, the three bzip2 streams side by side (about 12 MB of state).
Of the compressed control and diff streams, the sizes are held against `limit`.
"""

from __future__ import annotations

import bz2
from collections.abc import Iterator

from feed.delta.difference import add
from feed.delta.source import Source
from feed.errors import RebuildError

PIECE_BYTES = 64 << 10
# bzip2 may lengthen what it can't shorten; more is no incremental.
_OVERHEAD_MAX = 64 << 10

_MAGIC = b"BSDIFF40"
_HEADER_BYTES = 32
_CONTROL_BYTES = 24
_SIGN = 1 << 63


def rebuild(old: Source, delta: Source, *, limit: int) -> Iterator[bytes]:
    """The result, in pieces of at most PIECE_BYTES.

    Raises RebuildError: malformed, outside the base, or past `limit` bytes.
    """
    length, control, diff, extra = _open(delta, limit)
    written = position = steps = 0
    while written < length:
        added, inserted, move = _control(control)
        steps += 1
        if added + inserted > length - written:
            raise RebuildError(f"the result passes its {length:,} bytes")
        if steps > length + 1:
            raise RebuildError("more steps than bytes in the result")
        if added and not 0 <= position <= old.length - added:
            raise RebuildError(f"reads outside the base's {old.length:,} bytes")
        for piece in diff.pieces(added):
            yield _sum(old.read(position, len(piece)), piece)
            position += len(piece)
        yield from extra.pieces(inserted)
        written += added + inserted
        position += move
    for stream in (control, diff, extra):
        stream.finish()


def _sum(old: bytes, difference: bytes) -> bytes:
    return add(old, difference) if difference.count(0) != len(difference) else old


def _open(delta: Source, limit: int) -> tuple[int, _Bzip2, _Bzip2, _Bzip2]:
    header = delta.head(0, _HEADER_BYTES)
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise RebuildError("not a BSDIFF40 stream")
    control, diff, length = (signed(header, at) for at in (8, 16, 24))
    if not 0 <= length <= limit:
        raise RebuildError(f"the result has {length:,} bytes, signed are {limit:,}")
    if min(control, diff) < 0 or control + diff > limit + _OVERHEAD_MAX:
        raise RebuildError(
            f"control of {control:,} and diff of {diff:,} bytes for a result of {limit:,}"
        )
    ends = (_HEADER_BYTES, _HEADER_BYTES + control, _HEADER_BYTES + control + diff)
    if ends[2] > delta.length:
        raise RebuildError(f"truncated: {delta.length:,} bytes, at least {ends[2]:,} are due")
    first = _Bzip2(_chunks(delta, ends[0], ends[1]))
    second = _Bzip2(_chunks(delta, ends[1], ends[2]))
    return length, first, second, _Bzip2(_chunks(delta, ends[2], delta.length))


def _chunks(delta: Source, at: int, end: int) -> Iterator[bytes]:
    return (
        delta.read(start, min(PIECE_BYTES, end - start)) for start in range(at, end, PIECE_BYTES)
    )


def signed(data: bytes, at: int) -> int:
    """A sign-and-magnitude 64-bit number, as bsdiff writes them."""
    value = int.from_bytes(data[at : at + 8], "little")
    return _SIGN - value if value & _SIGN else value


def _control(stream: _Bzip2) -> tuple[int, int, int]:
    data = b"".join(stream.pieces(_CONTROL_BYTES))
    added, inserted, move = (signed(data, at) for at in (0, 8, 16))
    if min(added, inserted) < 0:
        raise RebuildError(f"a step of {added:,} and {inserted:,} bytes")
    return added, inserted, move


class _Bzip2:
    """One of the three bzip2 streams, decoded as far as it is asked for."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._decoder = bz2.BZ2Decompressor()

    def pieces(self, size: int) -> Iterator[bytes]:
        """The next `size` decoded bytes, in pieces of at most PIECE_BYTES.

        Raises RebuildError: the stream is malformed or ends before.
        """
        while size:
            piece = self._decode(min(size, PIECE_BYTES))
            size -= len(piece)
            if piece:
                yield piece

    def finish(self) -> None:
        """Refuse a stream that doesn't end here, with its checksum right."""
        while not self._decoder.eof:
            if self._decode(1):
                raise RebuildError("a stream is longer than the steps use")
        if self._decoder.unused_data or next(self._chunks, b""):
            raise RebuildError("bytes follow the end of a stream")

    def _decode(self, size: int) -> bytes:
        chunk = next(self._chunks, b"") if self._decoder.needs_input else b""
        if self._decoder.eof or (self._decoder.needs_input and not chunk):
            raise RebuildError("a stream ends early")
        try:
            return self._decoder.decompress(chunk, size)
        except (OSError, ValueError, EOFError) as error:
            raise RebuildError(f"a stream is malformed: {error}") from error
