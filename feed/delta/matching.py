"""Find where the new file's bytes are in the old one, within a memory limit.

Long runs are found first, through anchors, which costs little; HDiffPatch, whose
suffix array costs time and memory, then sees only what they left over of both
files. Small files it sees whole.
"""

from __future__ import annotations

import mmap
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, pairwise

from feed.delta import anchors, match
from feed.delta.match import Cover, Piece, between

# Below it HDiffPatch is quick enough to see everything.
_ANCHORS_FROM_BYTES = 1 << 20
_COVER_BYTES_MIN = 8  # a shorter match isn't worth its numbers
_SHORT_BYTES = 128
_FAR_BYTES = 4 << 10
_FAR_COST = 6  # bytes that telling of such a cover takes: a jump of four, gap and length
_SAMPLED_COVERS = 4 << 10
_GAP_BYTES_MAX = 16  # which may just as well be differences as a literal

Buffer = bytes | mmap.mmap


def find(old: Buffer, new: Buffer, *, memory_limit: int) -> list[Cover]:
    """Where new is found in old: in the order of new, without overlaps."""
    fits = _cost(len(old), len(new)) <= memory_limit
    if fits and len(new) < _ANCHORS_FROM_BYTES:
        return match.covers(old[:], new[:])
    if not old:
        return []
    runs = anchors.runs(old, new, memory_limit=memory_limit // 4)
    rest = _leftovers(old, new, runs, memory_limit)
    return _paying(new, _merged(sorted([*runs, *rest], key=lambda cover: cover.new)))


def _paying(new: Buffer, covers: list[Cover]) -> list[Cover]:
    """The covers without the short ones from far away, should their bytes pack better as they are.

    Records that repeat each other do, whose like stands all over the old file.
    """
    far = [
        (before, cover)
        for before, cover in pairwise(covers)
        if cover.length < _SHORT_BYTES and abs(cover.old - before.old - before.length) > _FAR_BYTES
    ]
    some = far[len(far) // 3 :][:_SAMPLED_COVERS]
    gaps, whole = [], []
    for before, cover in some:
        start = max(before.new + before.length, cover.new - _SHORT_BYTES)
        gaps.append(new[start : cover.new])
        whole.append(new[start : cover.new + cover.length])
    won = len(zlib.compress(b"".join(whole))) - len(zlib.compress(b"".join(gaps)))
    if won > _FAR_COST * len(some):
        return covers
    dropped = {cover.new for _, cover in far}
    return [cover for cover in covers if cover.new not in dropped]


def _cost(old_length: int, new_length: int) -> int:
    return old_length * (match.OLD_COST + 1) + new_length * (match.NEW_COST + 1)


def _merged(covers: list[Cover]) -> list[Cover]:
    """Neighbours that moved by the same, with little between them, as one."""
    found: list[Cover] = []
    for cover in covers:
        if found:
            last = found[-1]
            gap = cover.new - last.new - last.length
            if gap <= _GAP_BYTES_MAX and cover.old - cover.new == last.old - last.new:
                found[-1] = Cover(last.old, last.new, last.length + gap + cover.length)
                continue
        found.append(cover)
    return found


def _leftovers(old: Buffer, new: Buffer, runs: list[Cover], memory_limit: int) -> list[Cover]:
    """What HDiffPatch finds of the rest of new in the rest of old, some at a time."""
    lost = between([Piece(run.new, run.length) for run in runs], len(new))
    free = between(sorted(Piece(run.old, run.length) for run in runs), len(old))
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


def _batches(pieces: list[Piece], most: int) -> Iterator[list[Piece]]:
    """The pieces in groups of at most `most` bytes; long ones are cut."""
    batch: list[Piece] = []
    room = most
    for piece in pieces:
        start, length = piece
        while length:
            size = min(length, room)
            batch.append(Piece(start, size))
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


def _near(pieces: list[Piece], place: int, most: int) -> list[Piece]:
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
            found.append(Piece(piece.start + start, end - start))
    return found


def _joined(data: Buffer, pieces: list[Piece]) -> bytes:
    return b"".join(data[start : start + length] for start, length in pieces)


def _translated(covers: list[Cover], *, old: list[Piece], new: list[Piece]) -> Iterator[Cover]:
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
