"""Lay covers out as the streams of a covers segment (docs/delta-format.md).

Two layouts are weighed against each other. Differences inside covers suit
code and tables, where a field here and there moved by the same amount. In
text, what changed is better told as a literal between two shorter covers.
"""

from __future__ import annotations

import mmap
import re
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from feed.delta.changes import CHANGE_BYTES_MAX, WIDTHS
from feed.delta.covers import WINDOWS_MAX
from feed.delta.difference import subtract
from feed.delta.effort import Effort
from feed.delta.format import varint, varints, zigzag
from feed.delta.match import Cover
from feed.delta.pack import pack
from feed.delta.streams import Extent

# Of the result; bounds what a crash costs, and the publisher's memory.
SEGMENT_BYTES = 32 << 20
_COMPARE_BYTES = CHANGE_BYTES_MAX  # so that no run is longer
_RUN = re.compile(rb"[^\0]+")
# Equal bytes between two changed places that aren't worth a cover.
_ISLAND_BYTES = 4
_SAMPLED_CHANGES = 16 << 10

Buffer = bytes | mmap.mmap
Change = tuple[int, bytes]  # where, and what is added there


class _Streams(NamedTuple):
    """The streams before they are packed, in the order of the format."""

    gaps: bytes
    jumps: bytes
    lengths: bytes
    places: bytes
    values: tuple[bytes, ...]  # one for each of WIDTHS
    literals: bytes

    def all(self) -> tuple[bytes, ...]:
        """One behind the other."""
        return (*self[:4], *self.values, self.literals)


class _Layout(NamedTuple):
    """A way to tell one segment."""

    covers: int
    follows_gap: bool
    streams: _Streams


def cut(covers: list[Cover], length: int) -> Iterator[tuple[int, int, list[Cover]]]:
    """Ranges of the new file of at most SEGMENT_BYTES, with the (parts of) covers in them."""
    for start in range(0, length, SEGMENT_BYTES):
        end = min(start + SEGMENT_BYTES, length)
        yield start, end, within(covers, start, end)


def within(covers: list[Cover], start: int, end: int) -> list[Cover]:
    """The covers of new[start:end], those at its edges cut off there."""
    first = bisect_right(covers, start, key=lambda cover: cover.new + cover.length)
    last = bisect_left(covers, end, key=lambda cover: cover.new)
    found = []
    for cover in covers[first:last]:
        cut_off = max(start - cover.new, 0)
        size = min(cover.new + cover.length, end) - cover.new - cut_off
        found.append(Cover(cover.old + cut_off, cover.new + cut_off, size))
    return found


def payload(
    old: Buffer,
    new: Buffer,
    start: int,
    end: int,
    covers: list[Cover],
    *,
    effort: Effort,
    threads: int = 1,
) -> bytes:
    """The payload of a covers segment for new[start:end], the smaller layout of two."""
    changes = _changes(old, new, covers)
    layouts = [_with_differences(new, start, end, covers, changes)]
    if changes and _reads_better(new, changes):
        layouts.append(_with_literals(new, start, end, _without(covers, changes)))
    if len(layouts) > 1 and end - start > 1 << 20:
        layouts = [min(layouts, key=_estimate)]
    return min((_packed(item, effort, threads) for item in layouts), key=len)


def _packed(layout: _Layout, effort: Effort, threads: int) -> bytes:
    streams = layout.streams.all()
    numbers = [number for number, stream in enumerate(streams) if stream]

    def one(number: int) -> tuple[Extent, bytes]:
        return pack(streams[number], effort=effort, window_max=WINDOWS_MAX[number])

    with ThreadPoolExecutor(threads) as pool:  # liblzma and libzstd run beside each other
        packed = list(pool.map(one, numbers))
    present = sum(1 << number for number in numbers)
    head = varint(layout.covers << 1 | layout.follows_gap) + varint(present)
    return b"".join((head, *(line.pack() for line, _ in packed), *(data for _, data in packed)))


def _estimate(layout: _Layout) -> int:
    return sum(len(zlib.compress(stream, 1)) for stream in layout.streams.all())


def _changes(old: Buffer, new: Buffer, covers: list[Cover]) -> list[Change]:
    """Where covers differ: places in the new file, and new - old there, in order.

    A run of differing bytes is one little-endian number, modulo its width.
    """
    found: list[Change] = []
    for cover in covers:
        after = new[cover.new : cover.new + cover.length]
        before = old[cover.old : cover.old + cover.length]
        if before == after:
            continue
        for at in range(0, cover.length, _COMPARE_BYTES):
            left, right = after[at : at + _COMPARE_BYTES], before[at : at + _COMPARE_BYTES]
            if left != right:
                place = cover.new + at
                found += [(place + run, value) for run, value in _runs(left, right)]
    return found


def _runs(left: bytes, right: bytes) -> Iterator[Change]:
    number = int.from_bytes
    for run in _RUN.finditer(subtract(left, right)):
        first, last = run.span()
        value = number(left[first:last], "little") - number(right[first:last], "little")
        size = last - first
        yield first, (value % (1 << 8 * size)).to_bytes(size, "little")


def _reads_better(new: Buffer, changes: list[Change]) -> bool:
    """Whether what is new at some of the changed places packs better than the differences."""
    some = changes[len(changes) // 3 :][:_SAMPLED_CHANGES]
    literal = zlib.compress(b"".join(new[at : at + len(value)] for at, value in some))
    return len(literal) < len(zlib.compress(b"".join(value for _, value in some)))


def _without(covers: list[Cover], changes: list[Change]) -> list[Cover]:
    """The covers' equal parts."""
    found = []
    places = iter(changes)
    change = next(places, None)
    for cover in covers:
        at, end = cover.new, cover.new + cover.length
        shift = cover.old - cover.new
        while change is not None and change[0] < end:
            place, values = change
            if place - at > _ISLAND_BYTES or (place > at and at == cover.new):
                found.append(Cover(at + shift, at, place - at))
            at = place + len(values)
            change = next(places, None)
        if end > at:
            found.append(Cover(at + shift, at, end - at))
    return found


def _with_differences(
    new: Buffer, start: int, end: int, covers: list[Cover], changes: list[Change]
) -> _Layout:
    numbers, last = [], start
    values: dict[int, list[bytes]] = {width: [] for width in WIDTHS}
    for place, value in changes:
        numbers += [place - last, len(value)]
        last = place + len(value)
        values.get(len(value), values[0]).append(value)
    joined = tuple(b"".join(values[width]) for width in WIDTHS)
    return _told(new, start, end, covers, places=varints(numbers), values=joined)


def _with_literals(new: Buffer, start: int, end: int, covers: list[Cover]) -> _Layout:
    return _told(new, start, end, covers, places=b"", values=(b"",) * len(WIDTHS))


def _told(
    new: Buffer,
    start: int,
    end: int,
    covers: list[Cover],
    *,
    places: bytes,
    values: tuple[bytes, ...],
) -> _Layout:
    gaps, literals, last = [], [], start
    for cover in covers:
        gaps.append(cover.new - last)
        literals.append(new[last : cover.new])
        last = cover.new + cover.length
    literals.append(new[last:end])
    jumps, follows_gap = _jumps(covers, gaps)
    lengths = varints([cover.length for cover in covers])
    streams = _Streams(varints(gaps), jumps, lengths, places, values, b"".join(literals))
    return _Layout(len(covers), follows_gap, streams)


def _jumps(covers: list[Cover], gaps: list[int]) -> tuple[bytes, bool]:
    """How far the old position moves between covers, told in the way that packs better."""
    ends = [0, *(cover.old + cover.length for cover in covers)]
    moves = [cover.old - end for cover, end in zip(covers, ends, strict=False)]
    inserted = varints([zigzag(move) for move in moves])
    replaced = varints([zigzag(move - gap) for move, gap in zip(moves, gaps, strict=True)])
    if len(zlib.compress(replaced)) < len(zlib.compress(inserted)):
        return replaced, True
    return inserted, False
