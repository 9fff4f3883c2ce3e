"""Make an incremental, and rebuild a component from it.

Two codecs, of which `create` keeps the smaller result:

 * bsdiff4: the BSDIFF40 stream. Best where code or tables shift. Applied
   piece by piece: the base is sought in, never held.
 * zstd-prefix: one zstd frame with the old file as its prefix. Fast, and the
   only one tried above BSDIFF_BYTES_MAX.

An incremental is signed, yet a decoder is never trusted with it: every length
is held against the caller's limit before memory is taken, and whatever is
malformed ends in RebuildError, upon which the full file is fetched.

Memory of apply: bsdiff4 holds the compressed control and diff streams (at most
limit + 64 KiB) and about 12 MB of bzip2 state. zstd-prefix holds the base (twice
for a moment) and the result, up to SIZE_MAX each. Memory of create: 17 times
the base for bsdiff4; the base, the window and the match tables for zstd.
"""

from __future__ import annotations

import bz2
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import bsdiff4

from feed.errors import RebuildError
from feed.zstd import (
    CompressionParameter,
    DecompressionParameter,
    ZstdCompressor,
    ZstdDecompressor,
    ZstdDict,
    ZstdError,
)

BSDIFF = "bsdiff4"
ZSTD_PREFIX = "zstd-prefix"
FORMATS = (BSDIFF, ZSTD_PREFIX)

# bsdiff's suffix sort takes 17 bytes for each byte of the base, so 544 MiB at
# this size, and minutes beyond it, for every base of a release.
BSDIFF_BYTES_MAX = 32 << 20

# An endpoint that rebuilds with zstd-prefix holds base and result in memory;
# what is larger travels in full.
SIZE_MAX = 512 << 20

CHUNK = 64 << 10
# bsdiff's search is quadratic in repetition, a minute for 2 MB of zeros, while
# zstd makes that tiny: above this size, a zstd result within one packet is kept.
_SEARCH_ALWAYS_BYTES = 256 << 10
_PACKET_BYTES = 1400
# bzip2 and zstd may lengthen what they can't shorten; more is no incremental.
_OVERHEAD_MAX = 64 << 10
_LEVEL = 19
_LEVEL_LARGE = 12  # above BSDIFF_BYTES_MAX, where 19 takes minutes
_PREFIX_BYTES_MIN = 8  # zstd takes no shorter one

_MAGIC = b"BSDIFF40"
_HEADER_BYTES = 32
_CONTROL_BYTES = 24
_SIGN = 1 << 63


def create(base: Path, new: Path, out: Path) -> str:
    """Write the incremental that makes `new` from `base` to `out`.

    Returns its format. It may well be larger than `new`: the caller decides
    whether it is worth publishing.

    Raises RebuildError: base or new is above SIZE_MAX, so only the full file
    can travel. OSError: a file can't be read or written.
    """
    larger = max(base.stat().st_size, new.stat().st_size)
    if larger > SIZE_MAX:
        raise RebuildError(
            f"{new}: {larger:,} bytes, incrementals are made up to {SIZE_MAX:,}; it travels in full"
        )
    _write_zstd(base, new, out, level=_LEVEL if larger <= BSDIFF_BYTES_MAX else _LEVEL_LARGE)
    if _worth_a_search(larger, found=out.stat().st_size):
        patch: bytes = bsdiff4.diff(base.read_bytes(), new.read_bytes())
        if len(patch) < out.stat().st_size:
            out.write_bytes(patch)
            return BSDIFF
    return ZSTD_PREFIX


def apply(base: BinaryIO, delta: BinaryIO, out: BinaryIO, *, format: str, limit: int) -> str:  # noqa: A002 - the feed's word
    """Rebuild a component from its base and write it to `out`.

    base must be seekable; delta and out are used once, forwards. Writing stops
    at `limit` bytes, the signed length. See the module for memory.

    Returns the lowercase hex SHA-256 of what was written. The caller compares
    it: bytes in `out` are untrusted until then.

    Raises RebuildError: unknown format, malformed or truncated stream, output
    past `limit`, or too little memory. OSError: base, delta or out failed.
    """
    codec = _DECODERS.get(format)
    if codec is None:
        raise RebuildError(f"format {format!r} is unknown; known are {', '.join(FORMATS)}")
    digest = hashlib.sha256()
    try:
        for piece in codec(base, delta, limit):
            digest.update(piece)
            out.write(piece)
    except MemoryError as error:
        raise RebuildError(f"{format}: too little memory for {limit:,} bytes") from error
    return digest.hexdigest()


def _worth_a_search(larger: int, *, found: int) -> bool:
    """Whether bsdiff may beat the `found` bytes of zstd, at a bearable cost."""
    if larger > BSDIFF_BYTES_MAX:
        return False
    return larger <= _SEARCH_ALWAYS_BYTES or found > _PACKET_BYTES


def _write_zstd(base: Path, new: Path, out: Path, *, level: int) -> None:
    prefix = base.read_bytes()
    size = new.stat().st_size
    options: dict[int, int] = {
        CompressionParameter.compression_level: level,
        CompressionParameter.window_log: _window_log(len(prefix) + size),
        CompressionParameter.enable_long_distance_matching: 1,
        CompressionParameter.checksum_flag: 1,
    }
    compressor = ZstdCompressor(options=options, zstd_dict=_prefix(prefix))
    compressor.set_pledged_input_size(size)
    with new.open("rb") as source, out.open("wb") as sink:
        while chunk := source.read(CHUNK):
            sink.write(compressor.compress(chunk))
        sink.write(compressor.flush())


def _window_log(reach: int) -> int:
    """The window from whose end the first byte of the old file is still reachable."""
    lowest, highest = CompressionParameter.window_log.bounds()
    return min(max((reach - 1).bit_length(), lowest), highest)


def _prefix(base: bytes) -> tuple[ZstdDict, int] | None:
    return ZstdDict(base, is_raw=True).as_prefix if len(base) >= _PREFIX_BYTES_MIN else None


def _decode_zstd(base: BinaryIO, delta: BinaryIO, limit: int) -> Iterator[bytes]:
    size = base.seek(0, os.SEEK_END)
    if max(size, limit) > SIZE_MAX:
        raise RebuildError(
            f"{ZSTD_PREFIX}: base of {size:,} and result of {limit:,} bytes, "
            f"rebuilt up to {SIZE_MAX:,}"
        )
    base.seek(0)
    options: dict[int, int] = {DecompressionParameter.window_log_max: _window_log(size + limit)}
    decoder = ZstdDecompressor(_prefix(base.read(size)), options)
    written = 0
    for piece in _zstd_pieces(decoder, delta):
        written += len(piece)
        if written > limit:
            raise RebuildError(f"{ZSTD_PREFIX}: the result passes its signed {limit:,} bytes")
        yield piece
    if delta.read(1) or decoder.unused_data:
        raise RebuildError(f"{ZSTD_PREFIX}: bytes follow the end of the frame")


def _zstd_pieces(decoder: ZstdDecompressor, delta: BinaryIO) -> Iterator[bytes]:
    while not decoder.eof:
        chunk = delta.read(CHUNK) if decoder.needs_input else b""
        if decoder.needs_input and not chunk:
            raise RebuildError(f"{ZSTD_PREFIX}: the incremental is truncated")
        try:
            piece = decoder.decompress(chunk, CHUNK)
        except ZstdError as error:
            raise RebuildError(f"{ZSTD_PREFIX}: {error}") from error
        if piece:
            yield piece


def _decode_bsdiff(base: BinaryIO, delta: BinaryIO, limit: int) -> Iterator[bytes]:
    length, control, diff, extra = _open_bsdiff(delta, limit)
    base_size = base.seek(0, os.SEEK_END)
    written = position = steps = 0
    while written < length:
        added, inserted, move = _control(control)
        steps += 1
        if added + inserted > length - written:
            raise RebuildError(f"{BSDIFF}: the result passes its {length:,} bytes")
        if steps > length + 1:
            raise RebuildError(f"{BSDIFF}: more steps than bytes in the result")
        if added and not 0 <= position <= base_size - added:
            raise RebuildError(f"{BSDIFF}: reads outside the base's {base_size:,} bytes")
        if added:
            base.seek(position)
        yield from (_add(_exactly(base, len(piece)), piece) for piece in diff.pieces(added))
        yield from extra.pieces(inserted)
        written += added + inserted
        position += added + move
    for stream in (control, diff, extra):
        stream.finish()


def _open_bsdiff(delta: BinaryIO, limit: int) -> tuple[int, _Bzip2, _Bzip2, _Bzip2]:
    header = delta.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise RebuildError(f"{BSDIFF}: not a BSDIFF40 stream")
    control, diff, length = (_signed(header, at) for at in (8, 16, 24))
    if not 0 <= length <= limit:
        raise RebuildError(f"{BSDIFF}: the result has {length:,} bytes, signed are {limit:,}")
    if min(control, diff) < 0 or control + diff > limit + _OVERHEAD_MAX:
        raise RebuildError(
            f"{BSDIFF}: control of {control:,} and diff of {diff:,} bytes for a result of {limit:,}"
        )
    # The three streams are used side by side and follow each other in the file.
    held = [iter(_take(delta, size)) for size in (control, diff)]
    rest = iter(lambda: delta.read(CHUNK), b"")
    return length, _Bzip2(held[0]), _Bzip2(held[1]), _Bzip2(rest)


def _signed(data: bytes, at: int) -> int:
    """A sign-and-magnitude 64-bit number, as bsdiff writes them."""
    value = int.from_bytes(data[at : at + 8], "little")
    return _SIGN - value if value & _SIGN else value


def _take(source: BinaryIO, size: int) -> list[bytes]:
    """The next `size` bytes in pieces: memory is taken for what is there, not for what is said."""
    return [_exactly(source, min(CHUNK, size - at)) for at in range(0, size, CHUNK)]


def _exactly(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) != size:
        raise RebuildError(f"{BSDIFF}: {len(data):,} bytes where {size:,} are due")
    return data


def _control(stream: _Bzip2) -> tuple[int, int, int]:
    data = b"".join(stream.pieces(_CONTROL_BYTES))
    added, inserted, move = (_signed(data, at) for at in (0, 8, 16))
    if min(added, inserted) < 0:
        raise RebuildError(f"{BSDIFF}: a step of {added:,} and {inserted:,} bytes")
    return added, inserted, move


def _add(left: bytes, right: bytes) -> bytes:
    """The sum of two equally long strings, byte by byte, modulo 256.

    As two long integers: the low seven bits are summed where no carry can
    leave its byte, the eighth is put in by exclusive or.
    """
    size = len(left)
    low = int.from_bytes(b"\x7f" * size, "little")
    a, b = int.from_bytes(left, "little"), int.from_bytes(right, "little")
    total = ((a & low) + (b & low)) ^ ((a ^ b) & ~low)
    return total.to_bytes(size, "little")


class _Bzip2:
    """One of the three bzip2 streams, decoded as far as it is asked for."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._decoder = bz2.BZ2Decompressor()

    def pieces(self, size: int) -> Iterator[bytes]:
        """The next `size` decoded bytes, in pieces of at most CHUNK.

        Raises RebuildError: the stream is malformed or ends before.
        """
        while size:
            piece = self._decode(min(size, CHUNK))
            size -= len(piece)
            if piece:
                yield piece

    def finish(self) -> None:
        """Refuse a stream that doesn't end here, with its checksum right."""
        while not self._decoder.eof:
            if self._decode(1):
                raise RebuildError(f"{BSDIFF}: a stream is longer than the steps use")
        if self._decoder.unused_data or next(self._chunks, b""):
            raise RebuildError(f"{BSDIFF}: bytes follow the end of a stream")

    def _decode(self, size: int) -> bytes:
        chunk = next(self._chunks, b"") if self._decoder.needs_input else b""
        if self._decoder.eof or (self._decoder.needs_input and not chunk):
            raise RebuildError(f"{BSDIFF}: a stream ends early")
        try:
            return self._decoder.decompress(chunk, size)
        except (OSError, ValueError, EOFError) as error:
            raise RebuildError(f"{BSDIFF}: a stream is malformed: {error}") from error


_DECODERS: dict[str, Callable[[BinaryIO, BinaryIO, int], Iterator[bytes]]] = {
    BSDIFF: _decode_bsdiff,
    ZSTD_PREFIX: _decode_zstd,
}
