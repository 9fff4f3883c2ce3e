"""Rebuild a covers segment: ranges of the old file, differences, literals.

A segment is a row of covers, each a literal and then a range of the old file;
a last literal follows. Differences are added at places of the result, so long
equal ranges cost a copy and nothing else. A run of differing bytes is one
little-endian number: fields that moved by the same amount look the same,
whatever carries. Numbers and bytes are in ten streams (docs/delta-format.md),
which are read side by side.

Memory: the streams' windows (20 MiB at most, all of them together), a piece of
the result of 512 KiB, and the numbers that belong to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from feed.delta.changes import WIDTHS, Differences
from feed.delta.format import take_varint, unzigzag
from feed.delta.numbers import numbers
from feed.delta.source import Source
from feed.delta.streams import Extent, Method, Unpacking, take_extent
from feed.errors import RebuildError

PIECE_BYTES = 512 << 10
STREAMS = (
    "gaps", "jumps", "lengths", "places", *(f"values of {width}" for width in WIDTHS), "literals",
)  # fmt: skip
WINDOWS_MAX = (1 << 20, 2 << 20, 2 << 20, 2 << 20, *(1 << 20 for _ in WIDTHS), 8 << 20)


class Table(NamedTuple):
    """The start of a covers payload."""

    covers: int
    follows_gap: bool  # a literal moves the old position too: replaced, not inserted
    extents: tuple[Extent, ...]


def take_table(data: bytes, payload_length: int) -> tuple[Table, int]:
    """The table at the start of a payload, and where its streams begin.

    Raises RebuildError: malformed, or streams that don't fill the payload.
    """
    first, at = take_varint(data, 0)
    present, at = take_varint(data, at)
    if present >> len(STREAMS):
        raise RebuildError(f"streams {present:#x}, known are {len(STREAMS)}")
    extents = [Extent(Method.EMPTY)] * len(STREAMS)
    for number in range(len(STREAMS)):
        if present >> number & 1:
            extents[number], at = take_extent(data, at)
    packed = sum(extent.packed_length for extent in extents)
    if at + packed != payload_length:
        raise RebuildError(f"streams of {packed:,} bytes in a payload of {payload_length:,}")
    return Table(first >> 1, bool(first & 1), tuple(extents)), at


def rebuild(
    old: Source, delta: Source, at: int, table: Table, *, result_length: int
) -> Iterator[bytearray]:
    """A covers segment's part of the result, in pieces of about PIECE_BYTES.

    at is where the streams begin in delta.

    Raises RebuildError: streams that contradict each other, the old file, or
    result_length. Nothing past result_length is yielded.
    """
    return _Segment(old, delta, at, table, result_length).pieces()


class _Segment:
    """One segment while it is rebuilt."""

    def __init__(
        self, old: Source, delta: Source, at: int, table: Table, result_length: int
    ) -> None:
        if table.covers > result_length:
            raise RebuildError(f"{table.covers:,} covers for {result_length:,} bytes")
        self._streams = []
        for extent, window_max in zip(table.extents, WINDOWS_MAX, strict=True):
            self._streams.append(Unpacking(delta, at, extent, window_max=window_max))
            at += extent.packed_length
        gaps, jumps, lengths, places, *values, self._literals = self._streams
        self._covers = _rows(*map(numbers, (gaps, jumps, lengths)))
        self._differences = Differences(places, values)
        self._old = old
        self._table = table
        self._length = result_length

    def pieces(self) -> Iterator[bytearray]:
        """See rebuild."""
        start = size = 0
        parts: list[bytes] = []
        for part in self._parts():
            size += len(part)
            if start + size > self._length:
                raise RebuildError(f"a segment passes its {self._length:,} bytes")
            parts.append(part)
            if size >= PIECE_BYTES:
                piece = bytearray().join(parts)
                parts = [self._differences.add(piece, start)]
                yield piece
                start, size = start + len(piece), len(parts[0])
        if start + size != self._length:
            raise RebuildError(f"a segment has {start + size:,} of its {self._length:,} bytes")
        piece = bytearray().join(parts)
        if self._differences.add(piece, start):
            raise RebuildError("a difference lies past its segment")
        self._differences.finish()
        yield piece
        for stream in self._streams:
            stream.finish()

    def _parts(self) -> Iterator[bytes]:
        """Literals and old ranges, in order; none longer than PIECE_BYTES."""
        read_old, read_literal = self._old.read, self._literals.read
        follows_gap = self._table.follows_gap
        old_length = self._old.length
        position = count = 0
        for gap, jump, length in self._covers:
            count += 1
            if gap:
                if gap <= PIECE_BYTES:
                    yield read_literal(gap)
                else:
                    yield from self._literals.pieces(gap, PIECE_BYTES)
                if follows_gap:
                    position += gap
            position += unzigzag(jump)
            if length == 0 or not 0 <= position <= old_length - length:
                raise RebuildError(
                    f"a cover of {length:,} bytes at {position:,} of an old file of {old_length:,}"
                )
            if length <= PIECE_BYTES:
                yield read_old(position, length)
            else:
                yield from _old_pieces(self._old, position, length)
            position += length
        if count != self._table.covers:
            raise RebuildError(f"{count:,} covers, the table says {self._table.covers:,}")
        yield from self._literals.pieces(self._literals.left, PIECE_BYTES)


def _old_pieces(old: Source, position: int, length: int) -> Iterator[bytes]:
    for at in range(position, position + length, PIECE_BYTES):
        yield old.read(at, min(PIECE_BYTES, position + length - at))


def _rows(*columns: Iterator[int]) -> Iterator[tuple[int, ...]]:
    """The first number of each, the second of each, and so on."""
    try:
        yield from zip(*columns, strict=True)
    except ValueError:
        raise RebuildError("streams that belong together have different lengths") from None
