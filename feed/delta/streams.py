"""One stream of a segment: packed at the publisher, unpacked a piece at a time.

A stream is stored, LZMA2 or zstd, whichever was smallest. Its window follows
from its length and its place, so nothing in it can ask for more memory.

 * At most a small chunk more than asked for is decoded; so many small reads
   cost little. The packed bytes are read in chunks too.
 * The native decoders (liblzma, libzstd) see packed bytes only after the
   increment's signed digest was checked, and are fed through Python's own
   bindings, which bound their output; a failure of theirs is a RebuildError.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import NamedTuple, Protocol

from feed.delta.format import take_varint, varint
from feed.delta.source import Source
from feed.errors import RebuildError
from feed.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

WINDOW_MAX = 8 << 20
_METHOD_BITS = 3  # of a line; the rest is the length
_WINDOW_MIN = 4 << 10  # as small as LZMA's goes
_READ_BYTES = 32 << 10
_AHEAD_BYTES = 16 << 10


class Method(IntEnum):
    """How a stream is packed; the LZMA2 ones differ in what predicts a byte."""

    EMPTY = 0
    STORED = 1
    ZSTD = 2
    LZMA = 3  # lc 3, lp 0, pb 2: the usual
    LZMA_PLAIN = 4  # lc 0, lp 0, pb 0: numbers and noise
    LZMA_TEXT = 5  # lc 4, lp 0, pb 0
    LZMA_WORDS = 6  # lc 0, lp 2, pb 2: fields of four bytes


PREDICTORS: Mapping[Method, tuple[int, int, int]] = {
    Method.LZMA: (3, 0, 2),
    Method.LZMA_PLAIN: (0, 0, 0),
    Method.LZMA_TEXT: (4, 0, 0),
    Method.LZMA_WORDS: (0, 2, 2),
}


class Extent(NamedTuple):
    """A stream's line in the table of its segment; lengths in bytes. Empty streams have none."""

    method: Method
    length: int = 0
    packed_length: int = 0

    def pack(self) -> bytes:
        """The line's bytes."""
        line = varint(self.length << _METHOD_BITS | self.method)
        return line if self.method is Method.STORED else line + varint(self.packed_length)


def window_bytes(length: int, window_max: int) -> int:
    """The window of a stream of `length` bytes: the next power of two, within its limits."""
    return min(max(1 << max(length - 1, 0).bit_length(), _WINDOW_MIN), window_max)


def take_extent(data: bytes, at: int) -> tuple[Extent, int]:
    """The table line at `at`, and where the next begins.

    Raises RebuildError: cut off, unknown method, or lengths that can't be.
    """
    line, at = take_varint(data, at)
    number, length = line & (1 << _METHOD_BITS) - 1, line >> _METHOD_BITS
    try:
        method = Method(number)
    except ValueError:
        raise RebuildError(f"a stream's method {number} is unknown") from None
    packed, at = (length, at) if method is Method.STORED else take_varint(data, at)
    if not length or not packed or method is Method.EMPTY:
        raise RebuildError(f"a stream of {length:,} bytes in {packed:,}")
    return Extent(method, length, packed), at


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class Unpacking:
    """A stream that is being read, forwards.

    Holds its window, one chunk of packed and one of unpacked bytes.
    """

    def __init__(self, source: Source, at: int, extent: Extent, *, window_max: int) -> None:
        self._source = source
        self._at = at
        self._left_packed = extent.packed_length
        self._left = extent.length  # to unpack
        self._ahead = b""  # unpacked, of which the first _taken bytes were read
        self._taken = 0
        self._decoder = _decoder(extent, window_max)

    @property
    def left(self) -> int:
        """Bytes that weren't read yet."""
        return self._left + len(self._ahead) - self._taken

    def read(self, size: int) -> bytes:
        """Exactly the next `size` bytes. The caller keeps `size` small.

        Raises RebuildError: the stream is malformed or ends before.
        """
        start, end = self._taken, self._taken + size
        if end > len(self._ahead):
            if size > self.left:
                raise RebuildError(f"a stream has {self.left:,} bytes where {size:,} are due")
            self._ahead, start, end = self._more(size), 0, size
        self._taken = end
        return self._ahead[start:end]

    def _more(self, size: int) -> bytes:
        """What is left of the bytes ahead, and as many more as make `size`, or a chunk."""
        pieces = [self._ahead[self._taken :]]
        missing = min(max(size, _AHEAD_BYTES) - len(pieces[0]), self._left)
        while missing:
            piece = self._some(missing)
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def pieces(self, size: int, most: int) -> Iterator[bytes]:
        """Exactly the next `size` bytes, in pieces of at most `most`."""
        while size:
            piece = self.read(min(size, most))
            size -= len(piece)
            yield piece

    def finish(self) -> None:
        """Refuse a stream that has more than was read, or doesn't end where it should.

        Raises RebuildError.
        """
        if self.left:
            raise RebuildError(f"{self.left:,} bytes of a stream are left over")
        decoder = self._decoder
        while decoder is not None and not decoder.eof:
            if self._decode(decoder, 1):
                raise RebuildError("a stream is longer than its table says")
        if self._left_packed or (decoder is not None and decoder.unused_data):
            raise RebuildError("bytes follow the end of a stream")

    def _some(self, size: int) -> bytes:
        """At most `size` of the next bytes; none where the decoder needs another turn."""
        piece = self._decode(self._decoder, size) if self._decoder else self._packed(size)
        self._left -= len(piece)
        return piece

    def _packed(self, size: int) -> bytes:
        data = self._source.read(self._at, min(size, self._left_packed))
        self._at += len(data)
        self._left_packed -= len(data)
        return data

    def _decode(self, decoder: _Decoder, size: int) -> bytes:
        chunk = self._packed(_READ_BYTES) if decoder.needs_input else b""
        if decoder.eof or (decoder.needs_input and not chunk):
            raise RebuildError("a stream ends early")
        try:
            return decoder.decompress(chunk, size)
        except (lzma.LZMAError, ZstdError, EOFError, ValueError) as error:
            raise RebuildError(f"a stream is malformed: {error}") from error


def _decoder(extent: Extent, window_max: int) -> _Decoder | None:
    if extent.method in (Method.EMPTY, Method.STORED):
        return None
    window = window_bytes(extent.length, window_max)
    if extent.method is Method.ZSTD:
        return ZstdDecompressor(options={DecompressionParameter.window_log_max: zstd_log(window)})
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[lzma_filter(extent.method, window)])


def zstd_log(window: int) -> int:
    """The logarithm of a window for zstd, whose smallest is 1 KiB."""
    return max((window - 1).bit_length(), 10)


def lzma_filter(method: Method, window: int) -> dict[str, int]:
    """The raw filter of an LZMA2 method, as lzma takes it."""
    lc, lp, pb = PREDICTORS[method]
    return {"id": lzma.FILTER_LZMA2, "dict_size": window, "lc": lc, "lp": lp, "pb": pb}
