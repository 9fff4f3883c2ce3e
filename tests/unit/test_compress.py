"""Compressed copies: the same content, at a level that pays, decodable by every agent."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest

from feed import compress, decompress
from feed.errors import RebuildError
from feed.zstd import CompressionParameter, ZstdCompressor


def _file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "full"
    path.write_bytes(content)
    return path


def _text(size: int) -> bytes:
    dice = random.Random(1)
    words = [f"{dice.getrandbits(24):x} ".encode() for _ in range(500)]
    return b"".join(dice.choices(words, k=size // 6))


@pytest.mark.parametrize("level", [1, 19, 22])
def test_an_agent_decodes_a_copy_of_any_level(tmp_path: Path, level: int) -> None:
    content = _text(100_000) * 200  # past the window
    full, out = _file(tmp_path, content), tmp_path / "full.zst"
    length = compress.compress(full, out, level=level)
    assert length == out.stat().st_size < len(content) // 20
    decoded = io.BytesIO()
    with out.open("rb") as packed:
        decompress.decode(packed, decoded, limit=len(content))
    assert decoded.getvalue() == content


def test_a_copy_that_asks_for_more_memory_is_refused() -> None:
    options: dict[int, int] = {CompressionParameter.window_log: decompress.WINDOW_LOG_MAX + 1}
    greedy = ZstdCompressor(options=options)
    packed = greedy.compress(bytes(1 << 20)) + greedy.flush()
    with pytest.raises(RebuildError, match="doesn't decode"):
        decompress.decode(io.BytesIO(packed), io.BytesIO(), limit=1 << 20)


def test_what_zstd_makes_by_itself_up_to_level_19_is_decoded() -> None:
    content = _text(100_000) * 100
    options: dict[int, int] = {CompressionParameter.compression_level: 19}
    packed = ZstdCompressor(options=options).compress(content, ZstdCompressor.FLUSH_FRAME)
    decoded = io.BytesIO()
    decompress.decode(io.BytesIO(packed), decoded, limit=len(content))
    assert decoded.getvalue() == content


def test_a_copy_that_is_not_smaller_is_not_made(tmp_path: Path) -> None:
    full, out = _file(tmp_path, random.Random(1).randbytes(20_000)), tmp_path / "full.zst"
    assert compress.compress(full, out, level=3) is None
    assert not out.exists()


def test_what_does_not_compress_gets_the_lowest_level(tmp_path: Path) -> None:
    assert compress.paying_level(_file(tmp_path, random.Random(1).randbytes(50_000)), most=19) == 1


def test_text_gets_a_level_that_makes_less_than_the_lowest(tmp_path: Path) -> None:
    full = _file(tmp_path, _text(300_000))
    assert 1 < compress.paying_level(full, most=19) <= 19
    assert compress.paying_level(full, most=1) == 1


def test_nothing_is_compressed_too(tmp_path: Path) -> None:
    full = _file(tmp_path, b"")
    level = compress.paying_level(full, most=19)
    assert compress.compress(full, tmp_path / "full.zst", level=level) is None
