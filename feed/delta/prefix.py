"""Write a segment as a zstd frame that has a window of the old file as its prefix.

Best for text, where what is new resembles what is old without lying behind it.
"""

from __future__ import annotations

import mmap
import statistics
from collections.abc import Mapping
from types import MappingProxyType

from feed.delta.decode import FRAME_MAGIC, PREFIX_BYTES_MIN
from feed.delta.effort import Effort
from feed.delta.format import PREFIX_RESULT_MAX, PREFIX_WINDOW_MAX, Codec, Made, varint
from feed.delta.match import Cover
from feed.delta.streams import zstd_log
from feed.zstd import CompressionParameter, ZstdCompressor, ZstdDict

# Up to here it is made at the highest level whatever covers make: that takes little.
_SMALL_BYTES = 1 << 20
_SMALL_LEVEL = 22
# Above, a quick level makes the whole segment first: a thirtieth to a tenth of
# bsdiff4's CPU. Small samples mislead, for tables and heads weigh more in them.
_PROBE_LEVEL = 12
# Strong levels make 0.6 to 1.0 of what the probe made (16 pairs of 2 to 8 MB:
# rules, text, JSON, tables, libraries); where the probe was 1.15 times covers or
# more, they won once, by 1 %. In large segments only a thorough effort makes them:
# level 19 takes 0.3 to 2 CPU s for each MB, bsdiff4 0.3 to 0.5.
_MIDDLE_BYTES = 5_000_000
_MIDDLE_SHARE = 1.15
_STRONG_LEVEL = 19
# A third of the CPU of level 19 as it is, within 5 % of its bytes where prefix wins.
_STRONG_OPTIONS: Mapping[int, int] = {
    CompressionParameter.search_log: 2,
    CompressionParameter.target_length: 48,
}

Buffer = bytes | mmap.mmap


def segments(
    old: Buffer,
    new: Buffer,
    start: int,
    end: int,
    covers: list[Cover],
    *,
    effort: Effort,
    than: int,
) -> list[Made]:
    """new[start:end] as prefix segments, as few as the limits allow.

    than is what another codec makes of it, in bytes: none are returned if it
    is clear that these would be no smaller.
    """
    size = end - start
    if size <= _SMALL_BYTES and effort is not Effort.QUICK:
        return _cut(old, new, start, end, covers, level=_SMALL_LEVEL)
    if effort is Effort.THOROUGH:
        return _cut(old, new, start, end, covers, level=_STRONG_LEVEL)
    probe = _cut(old, new, start, end, covers, level=_PROBE_LEVEL)
    made = _size(probe)
    affordable = effort is Effort.USUAL and size <= _MIDDLE_BYTES
    if affordable and made < than * _MIDDLE_SHARE:
        strong = _cut(old, new, start, end, covers, level=_STRONG_LEVEL, options=_STRONG_OPTIONS)
        return min(probe, strong, key=_size)
    return probe if made < than else []


def _size(made: list[Made]) -> int:
    return sum(len(segment.payload) for segment in made)


def _cut(
    old: Buffer,
    new: Buffer,
    start: int,
    end: int,
    covers: list[Cover],
    *,
    level: int,
    options: Mapping[int, int] = MappingProxyType({}),
) -> list[Made]:
    count = -(-(end - start) // PREFIX_RESULT_MAX)
    size = -(-(end - start) // count)
    return [
        _segment(old, new, at, min(at + size, end), covers, level=level, options=options)
        for at in range(start, end, size)
    ]


def _segment(
    old: Buffer,
    new: Buffer,
    start: int,
    end: int,
    covers: list[Cover],
    *,
    level: int,
    options: Mapping[int, int],
) -> Made:
    first, size = _window(len(old), start, end, covers, PREFIX_WINDOW_MAX)
    window = old[first : first + size]
    all_options: dict[int, int] = {
        CompressionParameter.compression_level: level,
        CompressionParameter.window_log: zstd_log(size + end - start),
        CompressionParameter.enable_long_distance_matching: int(size + end - start > 1 << 20),
        **options,
    }
    usable = size >= PREFIX_BYTES_MIN
    given = ZstdDict(window, is_raw=True).as_prefix if usable else None
    compressor = ZstdCompressor(options=all_options, zstd_dict=given)
    compressor.set_pledged_input_size(end - start)
    frame = compressor.compress(new[start:end], ZstdCompressor.FLUSH_FRAME)
    where = varint(0) if size == len(old) else varint(size + 1) + varint(first)
    return Made(Codec.PREFIX, end - start, where + frame.removeprefix(FRAME_MAGIC))


def _window(
    old_length: int, start: int, end: int, covers: list[Cover], most: int
) -> tuple[int, int]:
    """The part of the old file around which most of new[start:end] was found."""
    if old_length <= most:
        return 0, old_length
    shifts = [
        item.old - item.new
        for item in covers
        if item.new < end and item.new + item.length > start and item.length > 32
    ]
    shift = int(statistics.median(shifts)) if shifts else 0
    first = (start + end) // 2 + shift - most // 2
    first = min(max(first, 0), old_length - most)
    return first, most
