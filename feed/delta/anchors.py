"""Find the long equal runs of two large files, in little time and memory.

Both files are sampled at anchors: places that their content itself marks, by a
byte pair that is rare enough. So an anchor in the new file has its like in the
old one wherever that moved (Manber, Finding Similar Files in a Large File
System, 1994). A few bytes behind each anchor of the old file go into an index;
a hit is extended in both directions as far as the files are equal, and over
small differences. The search goes on behind it, so its time is that of the
regular expression over what isn't equal, and of comparing memory.
"""

from __future__ import annotations

import mmap
import re
from collections import Counter

from feed.delta.match import Cover

Buffer = bytes | mmap.mmap

_KEY_BYTES = 32
# Of an anchor in the index: a number, its place and their share of the table.
_ANCHOR_COST = 150
_SPACING_MIN = 512
_SAMPLES = 64
_SAMPLE_BYTES = 16 << 10
# How far behind a difference the same shift is tried again.
_BRIDGES = (1, 2, 4, 8, 16, 24, 40, 64)
_BRIDGE_KEY_BYTES = 16
_JUDGED_PART = 8  # the first eighth tells whether going on is worth it
_STEP_BYTES_MAX = 4 << 20
_KEPT_BYTES_MIN = 64


def runs(old: Buffer, new: Buffer, *, memory_limit: int, least: float = 0) -> list[Cover]:
    """Ranges of at least _KEPT_BYTES_MIN bytes that are equal, but for small differences.

    In the order of new, without overlaps. memory_limit bounds the index, in bytes.
    Gives up, with nothing, when they explain less than the share `least` of the
    first part of new.
    """
    spacing = max(_SPACING_MIN, len(old) * _ANCHOR_COST // memory_limit)
    anchor = _anchor(old, spacing)
    index = _index(old, anchor, spacing)
    return _walk(old, new, anchor, index, least=least)


def _anchor(data: Buffer, spacing: int) -> re.Pattern[bytes]:
    """A pair of bytes that stands about once in `spacing` bytes of `data`."""
    step = max(len(data) // _SAMPLES, 1)
    sample = b"".join(data[at : at + _SAMPLE_BYTES] for at in range(0, len(data), step))
    wanted = len(sample) // spacing + 1
    counts = Counter(sample)
    first = min(
        counts, key=lambda byte: (counts[byte] < wanted, abs(counts[byte] - 4 * wanted), byte)
    )
    behind = Counter(
        sample[at.end()] for at in re.finditer(re.escape(bytes((first,))), sample[:-1])
    )
    chosen, reached = [], 0
    for byte, count in sorted(behind.items(), key=lambda item: (item[1], item[0])):
        chosen.append(byte)
        reached += count
        if reached >= wanted:
            break
    group = b"".join(re.escape(bytes((byte,))) for byte in chosen or [0])
    return re.compile(re.escape(bytes((first,))) + b"[" + group + b"]", re.DOTALL)


def _index(old: Buffer, anchor: re.Pattern[bytes], spacing: int) -> dict[int, int]:
    """Where in old the bytes behind an anchor stand, by their hash; the first place of several."""
    index: dict[int, int] = {}
    at, skip = 0, spacing // 4
    while found := anchor.search(old, at):
        place = found.start()
        index.setdefault(hash(old[place : place + _KEY_BYTES]), place)
        at = place + skip
    return index


def _walk(
    old: Buffer, new: Buffer, anchor: re.Pattern[bytes], index: dict[int, int], *, least: float
) -> list[Cover]:
    found: list[Cover] = []
    done = explained = 0  # of new
    judged = False
    first = _forward(old, new, 0, 0)
    if first >= _KEPT_BYTES_MIN:
        found.append(Cover(0, 0, first))
        done = explained = first
    at = done
    while hit := anchor.search(new, at):
        at = hit.start()
        place = index.get(hash(new[at : at + _KEY_BYTES]))
        if place is None or old[place : place + _KEY_BYTES] != new[at : at + _KEY_BYTES]:
            at += 1
            continue
        before = _backward(old, new, place, at, at - done)
        cover = Cover(place - before, at - before, before + _forward(old, new, place, at))
        if cover.length < _KEPT_BYTES_MIN:
            at += 1
            continue
        found.append(cover)
        done = at = cover.new + cover.length
        explained += cover.length
        if not judged and done > len(new) // _JUDGED_PART:
            judged = True
            if explained < least * done:
                return []
    return found


def _forward(old: Buffer, new: Buffer, place: int, at: int) -> int:
    """How many bytes are alike from here on: equal, but for small differences."""
    most = min(len(old) - place, len(new) - at)
    alike = _equal(old, new, place, at, most)
    while alike < most:
        for bridge in _BRIDGES:
            behind = alike + bridge
            key = old[place + behind : place + behind + _BRIDGE_KEY_BYTES]
            like = new[at + behind : at + behind + _BRIDGE_KEY_BYTES]
            if key == like and len(key) == _BRIDGE_KEY_BYTES:
                alike = behind + _equal(old, new, place + behind, at + behind, most - behind)
                break
        else:
            break
    return alike


def _equal(old: Buffer, new: Buffer, place: int, at: int, most: int) -> int:
    """How many of the next `most` bytes are equal: ever longer steps, then ever shorter ones."""
    same, step = 0, 64
    while same < most:
        size = min(step, most - same)
        if old[place + same : place + same + size] == new[at + same : at + same + size]:
            same += size
            step = min(step * 4, _STEP_BYTES_MAX)
        elif size == 1:
            return same
        else:
            step = size // 2
            most = same + size
    return same


def _backward(old: Buffer, new: Buffer, place: int, at: int, most: int) -> int:
    """How many bytes before here are equal, at most `most`."""
    same, step, most = 0, 64, min(most, place)
    while same < most:
        size = min(step, most - same)
        if old[place - same - size : place - same] == new[at - same - size : at - same]:
            same += size
            step = min(step * 4, _STEP_BYTES_MAX)
        elif size == 1:
            return same
        else:
            step = size // 2
            most = same + size
    return same
