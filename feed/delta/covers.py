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

from array import array
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from feed.delta.difference import add_runs
from feed.delta.format import take_varint, unzigzag
from feed.delta.source import Source
from feed.delta.streams import Extent, Unpacking, take_extent
from feed.errors import RebuildError

PIECE_BYTES = 512 << 10
WIDTHS = (1, 2, 3, 4, 0)  # of the runs whose values have a stream of their own; 0: all others
STREAMS = (
    "gaps", "jumps", "lengths", "places", *(f"values of {width}" for width in WIDTHS), "literals",
)  # fmt: skip
WINDOWS_MAX = (1 << 20, 2 << 20, 2 << 20, 2 << 20, *(1 << 20 for _ in WIDTHS), 8 << 20)
# A piece grows by no more than this to hold a run whole.
RUN_BYTES_MAX = 16 << 10
_NUMBERS_BYTES = 8 << 10  # of a stream of numbers at a time
_RUNS_AT_ONCE = 16 << 10
_FEW_RUNS = 48  # one by one below it; above, one sum over all of them is quicker
_ZEROS = bytes(64 << 10)
_ENDS = [bytes(max(size - 1, 0)) + b"\x80" for size in range(32)]


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
    extents = []
    for _ in STREAMS:
        extent, at = take_extent(data, at)
        extents.append(extent)
    packed = sum(extent.packed_length for extent in extents)
    if at + packed != payload_length:
        raise RebuildError(f"streams of {packed:,} bytes in a payload of {payload_length:,}")
    return Table(first >> 1, bool(first & 1), tuple(extents)), at


def rebuild(
    old: Source, delta: Source, at: int, table: Table, *, result_length: int
) -> Iterator[bytes]:
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
        self._covers = _rows(*map(_numbers, (gaps, jumps, lengths)))
        self._runs = _rows(*[_numbers(places)] * 2)
        self._values = _Values(values)
        self._next_run = next(self._runs, None)
        self._run_end = 0  # of the run before _next_run, in the segment
        self._old = old
        self._table = table
        self._length = result_length

    def pieces(self) -> Iterator[bytes]:
        """See rebuild."""
        start = size = 0
        parts: list[bytes] = []
        for part in self._parts():
            size += len(part)
            if start + size > self._length:
                raise RebuildError(f"a segment passes its {self._length:,} bytes")
            parts.append(part)
            if size >= PIECE_BYTES:
                done, rest = self._changed(b"".join(parts), start)
                yield done
                parts = [rest]
                start, size = start + len(done), len(rest)
        if start + size != self._length:
            raise RebuildError(f"a segment has {start + size:,} of its {self._length:,} bytes")
        done, _ = self._changed(b"".join(parts), start)
        if self._next_run is not None:
            raise RebuildError("a difference lies past its segment")
        yield done
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

    def _changed(self, piece: bytes, start: int) -> tuple[bytes, bytes]:
        """`piece`, which begins at `start` of the segment, with its differences added.

        What begins with a difference that doesn't end in the piece is returned
        beside it, for the next one.
        """
        end = start + len(piece)
        changed: bytearray | None = None
        while self._next_run is not None and self._run_end + sum(self._next_run) <= end:
            if changed is None:
                changed = bytearray(piece)
            places, sizes = self._take_runs(end)
            _add_runs(changed, start, places, self._values.take(sizes))
        if changed is not None:
            piece = bytes(changed)
        if self._next_run is None or self._run_end + self._next_run[0] >= end:
            return piece, b""
        whole = self._run_end + self._next_run[0] - start
        return piece[:whole], piece[whole:]

    def _take_runs(self, end: int) -> tuple[array[int], array[int]]:
        """Places and sizes of some of the next runs that end by `end`."""
        places, sizes = array("q"), array("q")
        last, run = self._run_end, self._next_run
        while run is not None and len(places) < _RUNS_AT_ONCE:
            skip, size = run
            if last + skip + size > end:
                break
            if not 0 < size <= RUN_BYTES_MAX:
                raise RebuildError(f"a difference of {size:,} bytes")
            places.append(last + skip)
            sizes.append(size)
            last += skip + size
            run = next(self._runs, None)
        self._run_end, self._next_run = last, run
        return places, sizes


def _old_pieces(old: Source, position: int, length: int) -> Iterator[bytes]:
    for at in range(position, position + length, PIECE_BYTES):
        yield old.read(at, min(PIECE_BYTES, position + length - at))


class _Values:
    """The streams of values, from which each run takes by its width."""

    def __init__(self, streams: Sequence[Unpacking]) -> None:
        self._streams = dict(zip(WIDTHS, streams, strict=True))

    def take(self, sizes: array[int]) -> list[bytes]:
        """The values of runs of these sizes, in order."""
        if len(sizes) < _FEW_RUNS:
            return [self._of(size).read(size) for size in sizes]
        ready = {
            width: _split(self._streams[width].read(width * sizes.count(width)), width)
            for width in WIDTHS[:-1]
        }
        others = self._streams[0]
        return [next(ready[size]) if size in ready else others.read(size) for size in sizes]

    def _of(self, size: int) -> Unpacking:
        return self._streams.get(size) or self._streams[0]


def _split(data: bytes, width: int) -> Iterator[bytes]:
    return (data[at : at + width] for at in range(0, len(data), width))


def _add_runs(
    changed: bytearray, start: int, places: Sequence[int], values: Sequence[bytes]
) -> None:
    """Add each value to the bytes at its place; `start` is where `changed` begins."""
    if len(places) >= _FEW_RUNS:
        _add_at_once(changed, start, places, values)
        return
    for place, value in zip(places, values, strict=True):
        at, size = place - start, len(value)
        total = int.from_bytes(changed[at : at + size], "little") + int.from_bytes(value, "little")
        changed[at : at + size] = (total & (1 << 8 * size) - 1).to_bytes(size, "little")


def _add_at_once(
    changed: bytearray, start: int, places: Sequence[int], values: Sequence[bytes]
) -> None:
    """One sum from the first run to the last: zeros between them, no carry out of any."""
    first = last = places[0]
    parts: list[bytes] = []
    ends: list[bytes] = []
    for place, value in zip(places, values, strict=True):
        if place > last:
            zeros = _zeros(place - last)
            parts.append(zeros)
            ends.append(zeros)
        size = len(value)
        parts.append(value)
        ends.append(_ENDS[size] if size < len(_ENDS) else bytes(size - 1) + b"\x80")
        last = place + size
    span = slice(first - start, last - start)
    changed[span] = add_runs(changed[span], b"".join(parts), b"".join(ends))


def _zeros(size: int) -> bytes:
    return _ZEROS[:size] if size <= len(_ZEROS) else bytes(size)


def _rows(*numbers: Iterator[int]) -> Iterator[tuple[int, ...]]:
    """The first number of each, the second of each, and so on."""
    try:
        yield from zip(*numbers, strict=True)
    except ValueError:
        raise RebuildError("streams that belong together have different lengths") from None


def _numbers(stream: Unpacking) -> Iterator[int]:
    """The numbers of a stream, decoded as far as they are used."""
    return chain.from_iterable(_batches(stream))


def _batches(stream: Unpacking) -> Iterator[Sequence[int]]:
    value = shift = 0
    while stream.left:
        data = stream.read(min(stream.left, _NUMBERS_BYTES))
        if not shift and data.isascii():
            yield data
            continue
        batch: list[int] = []
        for byte in data:
            if byte < 128:
                batch.append(value | byte << shift)
                value = shift = 0
            else:
                value |= (byte & 127) << shift
                shift += 7
                if shift > 56:
                    raise RebuildError("a number has more than 63 bits")
        yield batch
    if shift:
        raise RebuildError("a stream ends inside a number")
