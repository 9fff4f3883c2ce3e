"""Find where the new file's bytes are in the old one: HDiffPatch's matcher.

HDiffPatch (Sisong, MIT licence) finds covers through a suffix array and
extends them over small differences. Only its matches are used: its diff is
made uncompressed, and the covers are read out of its HDIFF13 head
(HDiffPatch, libHDiffPatch/HPatch/patch.c: read_diffz_head, _covers_read).

For publishers; endpoints don't have hdiffpatch.
"""

from __future__ import annotations

from typing import NamedTuple

import bsdiff4.core
import hdiffpatch

from feed.delta.bsdiff import signed

# Bytes for each byte of the old and of the new file, measured at 10 to 100 MB.
OLD_COST = 9
NEW_COST = 3

_HEAD_NUMBERS = 11
_COVER_COUNT = 2  # which of them
_LEFTOVER_BYTES_MIN = 16  # a shorter one isn't worth its numbers


class Cover(NamedTuple):
    """length bytes of the new file at `new` are, but for differences, the old file's at `old`."""

    old: int
    new: int
    length: int


class Piece(NamedTuple):
    """A range of a file, in bytes."""

    start: int
    length: int


def between(pieces: list[Piece], length: int) -> list[Piece]:
    """What the sorted, perhaps overlapping, pieces leave of a file of `length` bytes."""
    found, at = [], 0
    for piece in [*pieces, Piece(length, 0)]:
        if piece.start - at >= _LEFTOVER_BYTES_MIN:
            found.append(Piece(at, piece.start - at))
        at = max(at, piece.start + piece.length)
    return found


def covers(old: bytes, new: bytes) -> list[Cover]:
    """Where new is found in old: in the order of new, without overlaps.

    Memory: OLD_COST and NEW_COST; the two strings themselves come on top.
    """
    if not old or not new:
        return []
    diff = hdiffpatch.diff(old, new, "none", validate=False, big_cache_match=True)
    numbers, at = [], diff.index(0) + 1
    for _ in range(_HEAD_NUMBERS):
        value, at = _number(diff, at)
        numbers.append(value)
    return _read_covers(diff, at, numbers[_COVER_COUNT])


def covers_of_bsdiff(old: bytes, new: bytes) -> list[Cover]:
    """What bsdiff finds instead: better in small tables whose fields all moved.

    Memory: 17 bytes for each byte of old. Slow where much repeats.
    """
    control, _, _ = bsdiff4.core.diff(old, new)
    found = []
    there = here = 0
    numbers = (signed(control, at) for at in range(0, len(control), 8))
    for added, inserted, move in zip(numbers, numbers, numbers, strict=True):
        if added:
            found.append(Cover(there, here, added))
        there += added + move
        here += added + inserted
    return found


def _read_covers(diff: bytes, at: int, count: int) -> list[Cover]:
    """`count` covers from `at` on, each three numbers: a move with its sign, a gap, a length."""
    found = []
    old = new = 0
    for _ in range(count):
        # Written out, for there are many: _signed, then _number twice.
        byte = diff[at]
        negative, move, more = byte & 128, byte & 63, byte & 64
        at += 1
        while more:
            byte = diff[at]
            move, more = move << 7 | byte & 127, byte & 128
            at += 1
        gap = 0
        while (byte := diff[at]) > 127:
            gap = gap << 7 | byte & 127
            at += 1
        gap = gap << 7 | byte
        at += 1
        length = 0
        while (byte := diff[at]) > 127:
            length = length << 7 | byte & 127
            at += 1
        length = length << 7 | byte
        at += 1
        old += -move if negative else move
        new += gap
        if length:
            found.append(Cover(old, new, length))
        old += length
        new += length
    return found


def _number(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned number: groups of seven bits, highest first."""
    value = 0
    while data[at] > 127:
        value = value << 7 | data[at] & 127
        at += 1
    return value << 7 | data[at], at + 1
