"""Standard BSDIFF40 streams: applied exactly, in bounded memory, refused where they lie."""

from __future__ import annotations

import bz2
import contextlib
import io
import random
import subprocess
import sys
from pathlib import Path

import bsdiff4
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feed import delta
from feed.delta import bsdiff
from feed.errors import RebuildError
from tests.support.deltas import rebuild, rules

BASE = rules(60)
NEW = BASE.replace(b"r17", b"seventeen") + random.Random(6).randbytes(500)
PATCH: bytes = bsdiff4.diff(BASE, NEW)


def bsdiff_stream(
    *, steps: list[tuple[int, int, int]], diff: bytes, extra: bytes, length: int
) -> bytes:
    def number(value: int) -> bytes:
        return (abs(value) | (1 << 63 if value < 0 else 0)).to_bytes(8, "little")

    control = bz2.compress(b"".join(number(n) for step in steps for n in step))
    packed = bz2.compress(diff)
    sizes = number(len(control)) + number(len(packed)) + number(length)
    return b"BSDIFF40" + sizes + control + packed + bz2.compress(extra)


@settings(deadline=None, max_examples=60)
@given(base=st.binary(max_size=400), new=st.binary(max_size=400))
def test_what_bsdiff_made_is_applied(base: bytes, new: bytes) -> None:
    assert rebuild(base, bsdiff4.diff(base, new), codec=delta.BSDIFF, limit=len(new)) == new


def test_a_resumed_rebuild_starts_again() -> None:
    out = io.BytesIO(bytes(100_000))
    delta.apply(
        io.BytesIO(BASE), io.BytesIO(PATCH), out, format=delta.BSDIFF, limit=len(NEW), resume=True
    )
    assert out.getvalue() == NEW


def test_a_truncated_stream_is_a_rebuild_error_at_every_length() -> None:
    for length in range(len(PATCH)):
        with pytest.raises(RebuildError):
            rebuild(BASE, PATCH[:length], codec=delta.BSDIFF, limit=len(NEW))


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_a_flipped_bit_never_writes_past_the_limit(data: st.DataObject) -> None:
    patch = bytearray(PATCH)
    at = data.draw(st.integers(0, len(patch) * 8 - 1))
    patch[at // 8] ^= 1 << at % 8
    with contextlib.suppress(RebuildError):
        rebuild(BASE, bytes(patch), codec=delta.BSDIFF, limit=len(NEW))


def test_bytes_after_the_end_are_refused() -> None:
    for tail in (b"x", bytes(bsdiff.PIECE_BYTES * 2)):
        with pytest.raises(RebuildError, match="follow the end"):
            rebuild(BASE, PATCH + tail, codec=delta.BSDIFF, limit=len(NEW))


def test_one_byte_past_the_signed_length_is_refused() -> None:
    with pytest.raises(RebuildError, match="signed"):
        rebuild(BASE, PATCH, codec=delta.BSDIFF, limit=len(NEW) - 1)


@pytest.mark.parametrize(
    ("steps", "length", "problem"),
    [
        ([(5, 0, 0)], 1 << 62, "signed are 1,000"),
        ([(5, 0, 0)], -5, "signed are 1,000"),
        ([(1 << 60, 0, 0)], 10, "passes its 10 bytes"),
        ([(0, 1 << 60, 0)], 10, "passes its 10 bytes"),
        ([(-1, 5, 0)], 10, "a step of -1"),
        ([(5, -1, 0)], 10, "a step of 5"),
        ([(0, 0, -1), (5, 0, 0)], 5, "outside the base"),
        ([(0, 0, 1 << 62), (5, 0, 0)], 5, "outside the base"),
        ([(5, 0, 0), (5, 0, 0), (5, 0, 0)], 15, "outside the base"),
        ([(0, 0, 0)] * 50, 5, "more steps than bytes"),
        ([], 5, "ends early"),
        ([(5, 0, 0), (0, 0, 0)], 5, "longer than the steps use"),
        ([(4, 0, 0)], 4, "longer than the steps use"),
        ([(6, 0, 0)], 6, "ends early"),
    ],
)
def test_a_bsdiff_stream_that_contradicts_itself_is_refused(
    steps: list[tuple[int, int, int]], length: int, problem: str
) -> None:
    used = 5 if length != 15 else 15
    patch = bsdiff_stream(steps=steps, diff=bytes(used), extra=b"", length=length)
    with pytest.raises(RebuildError, match=problem):
        rebuild(b"0123456789", patch, codec=delta.BSDIFF, limit=1000)


def test_lengths_in_a_bsdiff_header_are_checked_before_anything_is_read() -> None:
    class Header(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            assert size <= bsdiff.PIECE_BYTES
            return super().read(size)

    for control, diff in ((1 << 62, 0), (0, 1 << 62), (1 << 40, 1 << 40)):
        sizes = [control, diff, 10]
        head = b"BSDIFF40" + b"".join(size.to_bytes(8, "little") for size in sizes)
        with pytest.raises(RebuildError, match="for a result of 1,000"):
            delta.apply(io.BytesIO(), Header(head), io.BytesIO(), format=delta.BSDIFF, limit=1000)


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM")
def test_a_bsdiff_rebuild_holds_neither_base_nor_result(tmp_path: Path) -> None:
    size = 64 << 20
    step = 1 << 20
    steps = [(step, 0, 0)] * (size // step)
    (tmp_path / "patch").write_bytes(
        bsdiff_stream(steps=steps, diff=bytes(size), extra=b"", length=size)
    )
    with (tmp_path / "base").open("wb") as base:
        base.truncate(size)
    program = f"""
from pathlib import Path
from feed import delta
def peak():
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) << 10
folder = Path({str(tmp_path)!r})
before = peak()
with open(folder / "base", "rb") as base, open(folder / "patch", "rb") as patch:
    with open(folder / "out", "wb") as out:
        delta.apply(base, patch, out, format="bsdiff4", limit={size})
print(peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert int(run.stdout) < 24 << 20
    assert (tmp_path / "out").stat().st_size == size
