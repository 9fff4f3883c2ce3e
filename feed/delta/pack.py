"""Pack a stream of a segment as small as the effort allows.

Which of LZMA's predictors fits is told by a sample; the whole stream is then
packed with it, and with zstd or all others where that is cheap or wanted. Of
two packings that differ by less than three percent the quicker to unpack wins.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterable

from feed.delta.effort import Effort
from feed.delta.streams import (
    PREDICTORS,
    WINDOW_MAX,
    Extent,
    Method,
    lzma_filter,
    window_bytes,
    zstd_log,
)
from feed.zstd import CompressionParameter, ZstdCompressor

# LZMA takes ten times zstd's time to unpack: what it saves has to be worth that.
_LZMA_WEIGHT = 1.03
# Up to here everything is tried at every effort: it takes milliseconds.
_SMALL_BYTES = 64 << 10
_MIDDLE_BYTES = 256 << 10  # up to here the two likeliest
_SAMPLE_BYTES = 24 << 10
_STORED_MAX = 16  # no packing makes less of so few bytes


def pack(data: bytes, *, effort: Effort, window_max: int = WINDOW_MAX) -> tuple[Extent, bytes]:
    """The table line and packed bytes of a stream."""
    if not data:
        return Extent(Method.EMPTY), b""
    found = [(Extent(Method.STORED, len(data), len(data)), data)]
    if len(data) > _STORED_MAX:
        for method in _worth_trying(data, effort):
            packed = _packed(data, method, effort, window_max)
            found.append((Extent(method, len(data), len(packed)), packed))
    return min(found, key=_cost)


def _cost(candidate: tuple[Extent, bytes]) -> float:
    extent, packed = candidate
    weight = 1.0 if extent.method in (Method.STORED, Method.ZSTD) else _LZMA_WEIGHT
    return (len(packed) + len(extent.pack())) * weight


def _worth_trying(data: bytes, effort: Effort) -> Iterable[Method]:
    if effort is Effort.THOROUGH or len(data) <= _SMALL_BYTES:
        return (*PREDICTORS, Method.ZSTD)
    sample = _sample(data)
    strong = len(data) <= _MIDDLE_BYTES and effort is Effort.USUAL
    sizes = {method: len(_lzma(sample, method, 3, WINDOW_MAX)) for method in PREDICTORS}
    best = min(sizes, key=sizes.__getitem__)
    # noise: nothing is found in it, and looking takes longest
    if sizes[best] > 0.995 * len(sample):
        return ()
    likely = sorted(sizes, key=sizes.__getitem__)[: 2 if strong else 1]
    if len(_zstd(sample, WINDOW_MAX)) < _LZMA_WEIGHT * sizes[best]:
        return [*likely, Method.ZSTD] if strong else [Method.ZSTD]
    return likely


def _sample(data: bytes) -> bytes:
    """Pieces from the start, the middle and the end."""
    size = _SAMPLE_BYTES // 3
    middle = len(data) // 2
    return data[:size] + data[middle : middle + size] + data[-size:]


def _packed(data: bytes, method: Method, effort: Effort, window_max: int) -> bytes:
    if method is Method.ZSTD:
        return _zstd(data, window_bytes(len(data), window_max))
    strong = len(data) <= _SMALL_BYTES or effort is Effort.THOROUGH
    if strong:
        return _lzma(data, method, 9 | lzma.PRESET_EXTREME, window_max)
    quick = effort is Effort.QUICK or len(data) > _MIDDLE_BYTES
    return _lzma(data, method, 4 if quick else 5, window_max)


def _lzma(data: bytes, method: Method, preset: int, window_max: int) -> bytes:
    options = lzma_filter(method, window_bytes(len(data), window_max)) | {"preset": preset}
    return lzma.compress(data, format=lzma.FORMAT_RAW, filters=[options])


def _zstd(data: bytes, window: int) -> bytes:
    options: dict[int, int] = {
        CompressionParameter.compression_level: 19,
        CompressionParameter.window_log: zstd_log(window),
    }
    return ZstdCompressor(options=options).compress(data, ZstdCompressor.FLUSH_FRAME)
