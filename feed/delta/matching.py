"""Find where the new file's bytes are in the old one, within a memory limit.

Long equal runs are found first, through anchors, which costs little. Where
they explain nearly all of the new file, or the files are too large for
HDiffPatch's suffix array, HDiffPatch sees only what they left over; else it
sees both files whole, and finds the better matches.
"""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

from feed.delta import anchors, match
from feed.delta.match import Cover

# Below it HDiffPatch is quick enough to see everything.
_ANCHORS_FROM_BYTES = 4 << 20
_EXPLAINED = 0.9  # of the new file, by runs that are on average
_RUN_BYTES = 1 << 10  # this long
# A leftover or a match that is shorter isn't worth its numbers.
_LEFTOVER_BYTES_MIN = 16
_COVER_BYTES_MIN = 8

Buffer = bytes | mmap.mmap


class _Piece(NamedTuple):
    """A range of a file, in bytes."""

    start: int
    length: int


def find(old: Buffer, new: Buffer, *, memory_limit: int) -> list[Cover]:
    """Where new is found in old: in the order of new, without overlaps."""
    fits = _cost(len(old), len(new)) <= memory_limit
    if fits and len(new) < _ANCHORS_FROM_BYTES:
        return match.covers(old[:], new[:])
    if not old:
        return []
    runs = anchors.runs(
        old, new, memory_limit=memory_limit // 4, least=_EXPLAINED / 2 if fits else 0
    )
    if fits and not _explained(runs, len(new)):
        return match.covers(old[:], new[:])
    rest = _leftovers(old, new, runs, memory_limit)
    return sorted([*runs, *rest], key=lambda cover: cover.new)


def _cost(old_length: int, new_length: int) -> int:
    return old_length * (match.OLD_COST + 1) + new_length * (match.NEW_COST + 1)


def _explained(runs: list[Cover], length: int) -> bool:
    covered = sum(run.length for run in runs)
    return covered >= _EXPLAINED * length and covered >= _RUN_BYTES * len(runs)


def _leftovers(old: Buffer, new: Buffer, runs: list[Cover], memory_limit: int) -> list[Cover]:
    """What HDiffPatch finds of the rest of new in the rest of old, some at a time."""
    lost = _between([_Piece(run.new, run.length) for run in runs], len(new))
    free = _between(sorted(_Piece(run.old, run.length) for run in runs), len(old))
    if not lost or not free:
        return []
    share = memory_limit // 2
    found: list[Cover] = []
    for batch in _batches(lost, share // (match.NEW_COST + 1) // 2):
        near = _near(free, _shift(runs, batch[0].start), share // (match.OLD_COST + 1))
        found += _translated(
            match.covers(_joined(old, near), _joined(new, batch)), old=near, new=batch
        )
    return found


def _between(pieces: list[_Piece], length: int) -> list[_Piece]:
    """What the sorted, perhaps overlapping, pieces leave of a file of `length` bytes."""
    found, at = [], 0
    for piece in [*pieces, _Piece(length, 0)]:
        if piece.start - at >= _LEFTOVER_BYTES_MIN:
            found.append(_Piece(at, piece.start - at))
        at = max(at, piece.start + piece.length)
    return found


def _batches(pieces: list[_Piece], most: int) -> Iterator[list[_Piece]]:
    """The pieces in groups of at most `most` bytes; long ones are cut."""
    batch: list[_Piece] = []
    room = most
    for piece in pieces:
        start, length = piece
        while length:
            size = min(length, room)
            batch.append(_Piece(start, size))
            start, length, room = start + size, length - size, room - size
            if not room:
                yield batch
                batch, room = [], most
    if batch:
        yield batch


def _shift(runs: list[Cover], at: int) -> int:
    """Where in old that is likely to be which stands at `at` of new."""
    before = bisect_right(runs, at, key=lambda run: run.new) - 1
    return at + runs[before].old - runs[before].new if before >= 0 else at


def _near(pieces: list[_Piece], place: int, most: int) -> list[_Piece]:
    """At most `most` bytes of the pieces, from around `place`."""
    sizes = [0, *accumulate(piece.length for piece in pieces)]
    if sizes[-1] <= most:
        return pieces
    middle = max(bisect_right(pieces, place, key=lambda piece: piece.start) - 1, 0)
    inside = min(max(place - pieces[middle].start, 0), pieces[middle].length)
    first = min(max(sizes[middle] + inside - most // 2, 0), sizes[-1] - most)
    found = []
    for piece, size in zip(pieces, sizes, strict=False):
        start = max(first - size, 0)
        end = min(first + most - size, piece.length)
        if start < end:
            found.append(_Piece(piece.start + start, end - start))
    return found


def _joined(data: Buffer, pieces: list[_Piece]) -> bytes:
    return b"".join(data[start : start + length] for start, length in pieces)


def _translated(covers: list[Cover], *, old: list[_Piece], new: list[_Piece]) -> Iterator[Cover]:
    """Covers between joined pieces as covers between the files, cut where pieces end."""
    old_sizes = [0, *accumulate(piece.length for piece in old)]
    new_sizes = [0, *accumulate(piece.length for piece in new)]
    for there, here, length in covers:
        done = 0
        while done < length:
            left = bisect_right(old_sizes, there + done) - 1
            right = bisect_right(new_sizes, here + done) - 1
            size = min(old_sizes[left + 1] - there, new_sizes[right + 1] - here, length) - done
            if size >= _COVER_BYTES_MIN:
                yield Cover(
                    old[left].start + there + done - old_sizes[left],
                    new[right].start + here + done - new_sizes[right],
                    size,
                )
            done += size
