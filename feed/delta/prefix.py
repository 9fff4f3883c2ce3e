"""Write a segment as a zstd frame that has a window of the old file as its prefix.

Best for text, where what is new resembles what is old without lying behind it.
"""

from __future__ import annotations

import mmap
import statistics
from collections.abc import Callable

from feed.delta.decode import FRAME_MAGIC, PREFIX_BYTES_MIN
from feed.delta.effort import Effort
from feed.delta.format import PREFIX_RESULT_MAX, PREFIX_WINDOW_MAX, Codec, Made, varint
from feed.delta.match import Cover
from feed.delta.streams import zstd_log
from feed.zstd import CompressionParameter, ZstdCompressor, ZstdDict

# Up to here both codecs are always made in full, and the smaller kept.
ALWAYS_BYTES = 5 << 20
_TRIAL_LEVEL = 9
_TRIAL_BYTES = 256 << 10
_TRIAL_WINDOW = 3 << 20
# What makes the time worth spending: a trial that is smaller by this much.
_GAIN = 0.97

Buffer = bytes | mmap.mmap


def promises(
    old: Buffer,
    new: Buffer,
    start: int,
    end: int,
    covers: list[Cover],
    *,
    effort: Effort,
    covered: Callable[[int, int], int],
) -> bool:
    """Whether `segments` may make less of new[start:end] than covers do.

    Two small parts are made both ways to tell; covered(start, end) is what the
    covers codec makes of one, in bytes.
    """
    if effort is Effort.THOROUGH or end - start <= ALWAYS_BYTES:
        return True
    mine = others = 0
    for share in (1, 2):
        at = start + (end - start) * share // 3
        made = _segment(
            old, new, at, at + _TRIAL_BYTES, covers, level=_TRIAL_LEVEL, window_max=_TRIAL_WINDOW
        )
        mine += len(made.payload)
        others += covered(at, at + _TRIAL_BYTES)
    return mine < others * _GAIN


def segments(
    old: Buffer, new: Buffer, start: int, end: int, covers: list[Cover], *, effort: Effort
) -> list[Made]:
    """new[start:end] as prefix segments, as few as the limits allow."""
    level = 12 if effort is Effort.QUICK else 19
    if end - start <= ALWAYS_BYTES and effort is not Effort.QUICK:
        level = 22
    count = -(-(end - start) // PREFIX_RESULT_MAX)
    size = -(-(end - start) // count)
    return [
        _segment(
            old, new, at, min(at + size, end), covers, level=level, window_max=PREFIX_WINDOW_MAX
        )
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
    window_max: int,
) -> Made:
    first, size = _window(len(old), start, end, covers, window_max)
    window = old[first : first + size]
    options: dict[int, int] = {
        CompressionParameter.compression_level: level,
        CompressionParameter.window_log: zstd_log(size + end - start),
        CompressionParameter.enable_long_distance_matching: int(size + end - start > 1 << 20),
    }
    usable = size >= PREFIX_BYTES_MIN
    given = ZstdDict(window, is_raw=True).as_prefix if usable else None
    compressor = ZstdCompressor(options=options, zstd_dict=given)
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
