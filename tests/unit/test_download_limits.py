"""What a full payload may cost: memory for its compressed copy, bytes for both of them."""

from __future__ import annotations

import hashlib
import io
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from feed import decompress
from feed.download import Downloader
from feed.errors import LimitError, RebuildError
from feed.transport import Transport
from feed.zstd import CompressionParameter, ZstdCompressor

CONTENT = random.Random(3).randbytes(300_000) + bytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
LIMIT = decompress.WINDOW_LOG_MAX

# Decodes its standard input; prints by how many kB the address space grew, and the refusal.
_DECODE = """
import io, sys
from feed import decompress
from feed.errors import RebuildError

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmPeak"))

packed = io.BytesIO(sys.stdin.buffer.read())
before, said = peak(), ""
try:
    decompress.decode(packed, io.BytesIO(), limit=1 << 30)
except RebuildError as error:
    said = str(error)
print(peak() - before, said)
"""


def packed(window_log: int) -> bytes:
    """CONTENT in a frame that asks for a window of that size, for it doesn't know its length."""
    packer = ZstdCompressor(options={CompressionParameter.window_log: window_log})
    return packer.compress(CONTENT) + packer.flush()


def frame(window: int) -> bytes:
    """A frame whose header asks for any window, and nothing else."""
    exponent = window.bit_length() - 1 - 10
    eighths = (window - (1 << exponent + 10)) >> (exponent + 10 - 3)
    return bytes((0x28, 0xB5, 0x2F, 0xFD, 0x00, exponent << 3 | eighths, 0x01, 0, 0))


def test_the_largest_window_of_the_usual_levels_is_decoded() -> None:
    out = io.BytesIO()
    assert decompress.decode(io.BytesIO(packed(LIMIT)), out, limit=len(CONTENT)) == DIGEST


@pytest.mark.parametrize("window", [9 << 20, 16 << 20, 1 << 30, 15 << 37])
def test_a_larger_window_is_refused_by_its_header(window: int) -> None:
    decompress.decode(io.BytesIO(frame(8 << 20)), io.BytesIO(), limit=0)
    with pytest.raises(RebuildError, match="too much memory"):
        decompress.decode(io.BytesIO(frame(window)), io.BytesIO(), limit=1 << 40)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_larger_window_is_refused_before_memory_is_taken() -> None:
    """Right content, in a frame that would take 64 MiB to decode."""

    def grown(window_log: int) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", _DECODE],
            input=packed(window_log),
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        kilobytes, _, said = done.stdout.decode().strip().partition(" ")
        return int(kilobytes), said

    wide, refusal = grown(26)
    assert "too much memory" in refusal
    assert wide < 4 << 10
    usual, refusal = grown(LIMIT)
    assert refusal == ""
    assert wide < usual  # the measure sees what a window takes


@pytest.fixture
def road(tmp_path: Path) -> Iterator[Downloader]:
    """A source with CONTENT, whose compressed copy asks for too large a window."""
    folder = tmp_path / "targets"
    folder.mkdir()
    (folder / f"{DIGEST}.full").write_bytes(CONTENT)
    (folder / f"{DIGEST}.full.zst").write_bytes(packed(LIMIT + 1))
    with Transport(proxy="", attempts=1) as transport:
        yield Downloader(transport, tmp_path / "cache", folder.as_uri())


def fetch(road: Downloader, to: Path, bytes_max: int | None) -> int:
    return road.fetch(
        "full",
        length=len(CONTENT),
        digest=DIGEST,
        destination=to,
        compressed=True,
        bytes_max=bytes_max,
    )


WASTED = len(packed(LIMIT + 1))


@pytest.mark.parametrize("bytes_max", [None, len(CONTENT) + WASTED])
def test_a_copy_with_too_large_a_window_costs_only_its_bytes(
    road: Downloader, tmp_path: Path, bytes_max: int | None
) -> None:
    assert fetch(road, tmp_path / "out", bytes_max) == len(CONTENT) + WASTED
    assert (tmp_path / "out").read_bytes() == CONTENT
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_plain_one_isnt_begun_when_both_would_be_too_much(
    road: Downloader, tmp_path: Path
) -> None:
    with pytest.raises(LimitError, match="full: needs") as caught:
        fetch(road, tmp_path / "out", len(CONTENT) + WASTED - 1)
    assert caught.value.needed == len(CONTENT) + WASTED
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_compressed_copy_that_is_too_much_itself_is_passed_over(
    road: Downloader, tmp_path: Path
) -> None:
    folder = tmp_path / "targets"
    (folder / f"{DIGEST}.full.zst").write_bytes(bytes(len(CONTENT) + 1))
    assert fetch(road, tmp_path / "out", len(CONTENT)) == len(CONTENT)
