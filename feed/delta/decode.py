"""Rebuild a result from increments in the segment format (docs/delta-format.md).

* Every length is held against the limits, the old file and the signed length
  before memory is taken or a byte is written.
* Memory doesn't depend on the sizes: a segment's decoders, one piece of the
  result, a few blocks of the old file.
* The old file isn't digested beforehand: a wrong one can't make the right
  result, and only then is it looked at, to say what was wrong.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO

from feed.delta import covers
from feed.delta.format import (
    BASE_CHECK_BYTES,
    HEAD_BYTES_MAX,
    PREFIX_RESULT_MAX,
    PREFIX_WINDOW_MAX,
    RESULT_CHECK_BYTES,
    Codec,
    Header,
    Segment,
    take_header,
    take_segment,
    take_varint,
)
from feed.delta.source import Blocks, Source
from feed.delta.streams import WINDOW_MAX, Unpacking, take_extent, zstd_log
from feed.errors import RebuildError
from feed.zstd import DecompressionParameter, ZstdDecompressor, ZstdDict, ZstdError

Piece = bytes | bytearray

_PIECE_BYTES = 1 << 20
_READ_BYTES = 64 << 10
FRAME_MAGIC = b"\x28\xb5\x2f\xfd"  # RFC 8878, 3.1.1
PREFIX_BYTES_MIN = 8  # zstd takes no shorter one


def rebuild(base: BinaryIO, delta: BinaryIO, out: BinaryIO, *, limit: int, resume: bool) -> str:
    """Write the result to `out`; returns its lowercase hex SHA-256.

    Raises RebuildError, OSError: see feed.delta.apply.
    """
    old, source = Blocks(base), Source(delta)
    header, at = take_header(source.head(0, HEAD_BYTES_MAX))
    if header.result_length > limit:
        raise RebuildError(f"the result has {header.result_length:,} bytes, signed are {limit:,}")
    if header.base_length != old.length:
        raise RebuildError(
            f"the base has {old.length:,} bytes, the incremental is for {header.base_length:,}"
        )
    digest = hashlib.sha256()
    skip = _kept(out, digest.update, source, header, at) if resume else 0
    for piece in _pieces(old, source, header, at, skip=skip):
        digest.update(piece)
        out.write(piece)
    if digest.digest()[:RESULT_CHECK_BYTES] != header.result_check:
        raise RebuildError(_blame(old, header))
    return digest.hexdigest()


def segments(source: Source, header: Header, at: int) -> Iterator[tuple[Segment, int]]:
    """The segments from `at` on, each with where its payload begins.

    Raises RebuildError: they don't make up the result, or don't end with the file.
    """
    made = 0
    while made < header.result_length:
        segment, inside = take_segment(
            source.head(at, HEAD_BYTES_MAX),
            result_left=header.result_length - made,
            file_left=source.length - at,
        )
        yield segment, at + inside
        made += segment.result_length
        at += inside + segment.payload_length
    if at != source.length:
        raise RebuildError(f"{source.length - at:,} bytes follow the end of the incremental")


def _pieces(old: Source, source: Source, header: Header, at: int, *, skip: int) -> Iterator[Piece]:
    """The result but for its first `skip` bytes, which are whole segments."""
    made = 0
    for segment, payload in segments(source, header, at):
        made += segment.result_length
        if made > skip:
            yield from _DECODERS[segment.codec](old, source, segment, payload)


def _kept(
    out: BinaryIO, digest: Callable[[bytes], None], source: Source, header: Header, at: int
) -> int:
    """Digest the whole segments that `out` holds, leave it at their end, cut off the rest."""
    held, kept = out.seek(0, os.SEEK_END), 0
    for segment, _ in segments(source, header, at):
        if kept + segment.result_length > held:
            break
        kept += segment.result_length
    out.seek(0)
    for start in range(0, kept, _PIECE_BYTES):
        digest(out.read(min(_PIECE_BYTES, kept - start)))
    out.truncate(kept)
    out.seek(kept)
    return kept


def _blame(old: Source, header: Header) -> str:
    """Why the result is another one than it should be."""
    digest = hashlib.sha256()
    for at in range(0, old.length, _PIECE_BYTES):
        digest.update(old.head(at, _PIECE_BYTES))
    if digest.digest()[:BASE_CHECK_BYTES] != header.base_check:
        return f"the base is another one: its SHA-256 starts with {digest.hexdigest()[:16]}"
    return "the result isn't the one the incremental was made for"


def _copy(old: Source, source: Source, segment: Segment, at: int) -> Iterator[bytes]:
    data = source.read(at, min(segment.payload_length, HEAD_BYTES_MAX))
    start, end = take_varint(data, 0)
    if end != segment.payload_length:
        raise RebuildError(f"a copy with a payload of {segment.payload_length:,} bytes")
    if start + segment.result_length > old.length:
        raise RebuildError(
            f"a copy of {segment.result_length:,} bytes at {start:,} of {old.length:,}"
        )
    for done in range(0, segment.result_length, _PIECE_BYTES):
        yield old.read(start + done, min(_PIECE_BYTES, segment.result_length - done))


def _raw(_old: Source, source: Source, segment: Segment, at: int) -> Iterator[bytes]:
    extent, inside = take_extent(source.read(at, min(segment.payload_length, HEAD_BYTES_MAX)), 0)
    if (extent.length, inside + extent.packed_length) != (
        segment.result_length,
        segment.payload_length,
    ):
        raise RebuildError(f"a stream of {extent.length:,} bytes in a segment of {segment}")
    stream = Unpacking(source, at + inside, extent, window_max=WINDOW_MAX)
    yield from stream.pieces(extent.length, _PIECE_BYTES)
    stream.finish()


def _covers(old: Source, source: Source, segment: Segment, at: int) -> Iterator[bytearray]:
    data = source.read(at, min(segment.payload_length, HEAD_BYTES_MAX))
    table, inside = covers.take_table(data, segment.payload_length)
    return covers.rebuild(old, source, at + inside, table, result_length=segment.result_length)


def _prefix(old: Source, source: Source, segment: Segment, at: int) -> Iterator[bytes]:
    data = source.read(at, min(segment.payload_length, HEAD_BYTES_MAX))
    start, size, inside = _window(data, old.length)
    if size > PREFIX_WINDOW_MAX or segment.result_length > PREFIX_RESULT_MAX:
        raise RebuildError(
            f"a prefix of {size:,} bytes for {segment.result_length:,}, the limits are "
            f"{PREFIX_WINDOW_MAX:,} and {PREFIX_RESULT_MAX:,}"
        )
    log = zstd_log(size + segment.result_length)
    window = old.read(start, size)
    prefix = ZstdDict(window, is_raw=True).as_prefix if size >= PREFIX_BYTES_MIN else None
    del window  # zstd has its own
    decoder = ZstdDecompressor(prefix, {DecompressionParameter.window_log_max: log})
    chunks = _chunks(source, at + inside, at + segment.payload_length)
    made = 0
    for piece in _frame(decoder, chunks):
        made += len(piece)
        if made > segment.result_length:
            raise RebuildError(f"a segment passes its {segment.result_length:,} bytes")
        yield piece
    if made != segment.result_length:
        raise RebuildError(f"a segment has {made:,} of its {segment.result_length:,} bytes")
    if decoder.unused_data or next(chunks, b""):
        raise RebuildError("bytes follow the end of a frame")


def _window(data: bytes, old_length: int) -> tuple[int, int, int]:
    """Where a prefix's window begins in the old file, its bytes, and where the frame begins."""
    size, at = take_varint(data, 0)
    if not size:  # the whole old file
        return 0, old_length, at
    start, at = take_varint(data, at)
    return start, size - 1, at


def _chunks(source: Source, at: int, end: int) -> Iterator[bytes]:
    """What a frame begins with, which the payload leaves out, and then the payload."""
    yield FRAME_MAGIC
    for start in range(at, end, _READ_BYTES):
        yield source.read(start, min(_READ_BYTES, end - start))


def _frame(decoder: ZstdDecompressor, chunks: Iterator[bytes]) -> Iterator[bytes]:
    while not decoder.eof:
        chunk = next(chunks, b"") if decoder.needs_input else b""
        if decoder.needs_input and not chunk:
            raise RebuildError("a frame is truncated")
        try:
            piece = decoder.decompress(chunk, _PIECE_BYTES)
        except ZstdError as error:
            raise RebuildError(f"a frame is malformed: {error}") from error
        if piece:
            yield piece


_DECODERS: dict[Codec, Callable[[Source, Source, Segment, int], Iterator[Piece]]] = {
    Codec.RAW: _raw,
    Codec.COPY: _copy,
    Codec.COVERS: _covers,
    Codec.PREFIX: _prefix,
}
