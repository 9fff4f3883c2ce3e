"""Find the long runs that two large files share, in little time and memory.

Both files are sampled at anchors: places that their content itself marks, by a
byte pair that is rare enough. So an anchor in the new file has its like in the
old one wherever that moved (Manber, Finding Similar Files in a Large File
System, 1994). A few bytes behind each anchor of the old file go into an index;
a hit is extended in both directions as long as differences stay few.

 * What stands in the old file more than once is no hit, unless nothing moved
   since the run before: the wrong one of many is a costly match.
 * What differs much, as tables do whose every field changed, is no part of a
   run: only the better matcher can tell which row belongs to which.
 * A run's edges are given up again. Where exactly it ends, the better matcher
   sees from what stands on both sides.

A first pass with few anchors finds what is long; a second one with many looks
through what the first left over.
"""

from __future__ import annotations

import mmap
import re
from collections import Counter
from collections.abc import Iterator
from typing import Literal

from feed.delta.match import Cover, Piece, between

Buffer = bytes | mmap.mmap

_KEY_BYTES = 24
# Of an anchor in the index: a number, its place and their share of the table.
_ANCHOR_COST = 150
_SPACINGS = (512, 64)
_SECOND_PASS_BYTES = 1 << 20  # that are left over; for less, another matcher is quick enough
_SAMPLES = 64
_SAMPLE_BYTES = 8 << 10
_MANY = -1  # in the index: the key stands in several places
_RUN_BYTES_MIN = 128  # without its edges
_EDGE_BYTES = 100
# Eight bytes that differ, without eight equal ones in a row among them, end a run.
_BREAK = re.compile(rb"[^\0](?:\0{0,7}[^\0]){7}")
_BREAK_BYTES = 64  # at most
_STEP_BYTES_MIN = 256
_STEP_BYTES_MAX = 1 << 20
_DIFFERENCE_BYTES = 4 << 10  # compared byte by byte at a time


def runs(old: Buffer, new: Buffer, *, memory_limit: int) -> list[Cover]:
    """Ranges of at least _RUN_BYTES_MIN bytes that are equal, but for few differences.

    In the order of new, without overlaps. memory_limit bounds the index, in bytes.
    """
    found: list[Cover] = []
    for spacing in _SPACINGS:
        lost = between([Piece(run.new, run.length) for run in found], len(new))
        free = between(sorted(Piece(run.old, run.length) for run in found), len(old))
        if found and sum(piece.length for piece in lost) < _SECOND_PASS_BYTES:
            break
        more = _pass(old, new, free, lost, spacing=spacing, memory_limit=memory_limit)
        found = sorted([*found, *more], key=lambda run: run.new)
    return [_inner(run) for run in found]


def _inner(run: Cover) -> Cover:
    """The run without its edges."""
    return Cover(run.old + _EDGE_BYTES, run.new + _EDGE_BYTES, run.length - 2 * _EDGE_BYTES)


def _pass(
    old: Buffer,
    new: Buffer,
    free: list[Piece],
    lost: list[Piece],
    *,
    spacing: int,
    memory_limit: int,
) -> Iterator[Cover]:
    """Runs that the pieces `lost` of new have in old, found by anchors in the pieces `free`."""
    if not free:
        return
    size = sum(piece.length for piece in free)
    spacing = max(spacing, size * _ANCHOR_COST // memory_limit)
    anchor = _anchor(_sample(old, free), spacing)
    index = _index(old, free, anchor, skip=spacing // 4)
    shift = 0
    for piece in lost:
        for run in _walk(old, new, piece, anchor, index, shift=shift):
            shift = run.old - run.new
            yield run


def _sample(data: Buffer, pieces: list[Piece]) -> bytes:
    """Some of the bytes of the pieces, from all over them."""
    pieces = pieces[:: len(pieces) // _SAMPLES + 1]
    step = max(sum(piece.length for piece in pieces) // _SAMPLES, _SAMPLE_BYTES)
    return b"".join(
        data[at : min(at + _SAMPLE_BYTES, start + length)]
        for start, length in pieces
        for at in range(start, start + length, step)
    )


def _anchor(sample: bytes, spacing: int) -> re.Pattern[bytes]:
    """A pair of bytes, one of several, that stands about once in `spacing` bytes of a sample."""
    wanted = len(sample) // spacing + 1
    counts = Counter(sample)
    first = min(
        counts, key=lambda byte: (counts[byte] < wanted, abs(counts[byte] - 4 * wanted), byte)
    )
    behind = Counter(
        sample[at.end()] for at in re.finditer(re.escape(bytes((first,))), sample[:-1])
    )
    chosen, reached = [], 0
    behind.pop(first, None)  # such pairs come in rows
    for byte, count in sorted(behind.items(), key=lambda item: (item[1], item[0])):
        chosen.append(byte)
        reached += count
        if reached >= wanted:
            break
    group = b"".join(re.escape(bytes((byte,))) for byte in chosen or [0])
    return re.compile(re.escape(bytes((first,))) + b"[" + group + b"]", re.DOTALL)


def _index(
    old: Buffer, pieces: list[Piece], anchor: re.Pattern[bytes], *, skip: int
) -> dict[int, int]:
    """Where in old the bytes behind an anchor stand, by their hash; or _MANY."""
    index: dict[int, int] = {}
    for start, length in pieces:
        at, end = start, start + length
        while found := anchor.search(old, at, end):
            place = found.start()
            key = hash(old[place : place + _KEY_BYTES])
            index[key] = _MANY if key in index else place
            at = place + skip
    return index


def _walk(
    old: Buffer,
    new: Buffer,
    piece: Piece,
    anchor: re.Pattern[bytes],
    index: dict[int, int],
    *,
    shift: int,
) -> Iterator[Cover]:
    """The runs in a piece of new. shift: from new to old, of the run before."""
    done = at = piece.start
    end = piece.start + piece.length
    while hit := anchor.search(new, at, end):
        at = hit.start()
        key = new[at : at + _KEY_BYTES]
        place = index.get(hash(key))
        if place == _MANY:
            place = at + shift
        if place is None or place < 0 or old[place : place + _KEY_BYTES] != key:
            at += 1
            continue
        before = _backward(old, new, place, at, min(at - done, place))
        behind = _forward(old, new, place, at, min(end - at, len(old) - place))
        if before + behind < _RUN_BYTES_MIN + 2 * _EDGE_BYTES:
            at += max(behind, 1)
            continue
        yield Cover(place - before, at - before, before + behind)
        shift = place - at
        done = at = at + behind


def _forward(old: Buffer, new: Buffer, place: int, at: int, most: int) -> int:
    """How many of the next `most` bytes are alike."""
    alike, step = 0, _STEP_BYTES_MIN
    while alike < most:
        size = min(step, most - alike)
        there, here = place + alike, at + alike
        left, right = old[there : there + size], new[here : here + size]
        if left == right:
            alike, step = alike + size, min(step * 4, _STEP_BYTES_MAX)
        elif size > _DIFFERENCE_BYTES:
            step = _DIFFERENCE_BYTES
        elif broken := _BREAK.search(_difference(left, right, "little")):
            return alike + broken.start()
        else:
            alike, step = alike + _kept(size, most - alike), _DIFFERENCE_BYTES
    return alike


def _backward(old: Buffer, new: Buffer, place: int, at: int, most: int) -> int:
    """How many of the `most` bytes before are alike."""
    alike, step = 0, _STEP_BYTES_MIN
    while alike < most:
        size = min(step, most - alike)
        there, here = place - alike, at - alike
        left, right = old[there - size : there], new[here - size : here]
        if left == right:
            alike, step = alike + size, min(step * 4, _STEP_BYTES_MAX)
        elif size > _DIFFERENCE_BYTES:
            step = _DIFFERENCE_BYTES
        elif broken := _BREAK.search(_difference(left, right, "big")):
            return alike + broken.start()
        else:
            alike, step = alike + _kept(size, most - alike), _DIFFERENCE_BYTES
    return alike


def _difference(left: bytes, right: bytes, order: Literal["little", "big"]) -> bytes:
    """0 where they are equal; from the last byte on if the order is big."""
    number = int.from_bytes(left, order) ^ int.from_bytes(right, order)
    return number.to_bytes(len(left), "little")


def _kept(size: int, left: int) -> int:
    """How far to go on, so that a break across the end of a step is seen in the next."""
    return size if size == left else size - _BREAK_BYTES
