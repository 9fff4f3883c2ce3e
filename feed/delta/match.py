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


class Cover(NamedTuple):
    """length bytes of the new file at `new` are, but for differences, the old file's at `old`."""

    old: int
    new: int
    length: int


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
    found = []
    old = new = 0
    for _ in range(count):
        move, at = _signed(diff, at)
        gap, at = _number(diff, at)
        length, at = _number(diff, at)
        old += move
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


def _signed(data: bytes, at: int) -> tuple[int, int]:
    """A number whose first byte has the sign in its highest bit, and so six bits of it."""
    first, at = data[at], at + 1
    value = first & 63
    if first & 64:
        more = 1
        while more:
            more = data[at] >> 7
            value = value << 7 | data[at] & 127
            at += 1
    return (-value if first & 128 else value), at
