"""The compressed copy of a payload: at the level that pays, for agents of little memory.

* Its window is at most 8 MiB, which is what agents grant (feed.decompress).
* The level is the lowest that makes next to the least of a sample: what
  doesn't compress costs no time, and unpacking is as quick from any level.
"""

from __future__ import annotations

from pathlib import Path

from feed import decompress
from feed.zstd import CompressionParameter, ZstdCompressor

READ_CHUNK = 1 << 20

# Levels that are tried on a sample, and what the lowest may cost in size against the best.
LEVELS = (1, 3, 6, 9, 12, 15, 19, 22)
LEVEL_SHARE = 1.005
SAMPLE_BYTES = 3 << 20


def paying_level(full: Path, *, most: int) -> int:
    """The lowest level, up to `most`, that makes next to the least of a sample."""
    sample = _sample(full)
    sizes = {
        level: len(_compressor(level, len(sample)).compress(sample, ZstdCompressor.FLUSH_FRAME))
        for level in (*(level for level in LEVELS if level < most), most)
    }
    least = min(sizes.values())
    return min(level for level, size in sizes.items() if size <= least * LEVEL_SHARE)


def _sample(full: Path) -> bytes:
    """All of a small file; of a large one, pieces from its start, middle and end."""
    size = full.stat().st_size
    with full.open("rb") as source:
        if size <= SAMPLE_BYTES:
            return source.read()
        pieces = []
        for at in (0, size // 2, size - SAMPLE_BYTES // 3):
            source.seek(at)
            pieces.append(source.read(SAMPLE_BYTES // 3))
    return b"".join(pieces)


def _compressor(level: int, size: int) -> ZstdCompressor:
    # A window above the file's size would ask agents for memory that decoding has no use for.
    window = min(max((size - 1).bit_length(), 10), decompress.WINDOW_LOG_MAX)
    compressor = ZstdCompressor(
        options={
            CompressionParameter.compression_level: level,
            CompressionParameter.window_log: window,
            # Cheap, and lower levels don't see far repeats by themselves.
            CompressionParameter.enable_long_distance_matching: 1,
            CompressionParameter.checksum_flag: 1,
        }
    )
    compressor.set_pledged_input_size(size)
    return compressor


def compress(full: Path, out: Path, *, level: int) -> int | None:
    """Write the zstd copy of `full`. Returns its bytes; None if it wouldn't be smaller."""
    size = full.stat().st_size
    compressor = _compressor(level, size)
    with full.open("rb") as source, out.open("wb") as sink:
        while chunk := source.read(READ_CHUNK):
            sink.write(compressor.compress(chunk))
        sink.write(compressor.flush())
    compressed = out.stat().st_size
    if compressed < size:
        return compressed
    out.unlink()
    return None
