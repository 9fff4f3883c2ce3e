"""Incrementals: small when little changed, exact, and never worse than an error."""

from __future__ import annotations

import bz2
import contextlib
import hashlib
import io
import random
import subprocess
import sys
from pathlib import Path

import bsdiff4
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from feed import delta
from feed.errors import RebuildError
from feed.zstd import ZstdCompressor

FORMATS = pytest.mark.parametrize("codec", delta.FORMATS)


def make(base: bytes, new: bytes, *, codec: str, folder: Path) -> bytes:
    """The incremental of one codec, whichever of them `create` would keep."""
    if codec == delta.BSDIFF:
        patch: bytes = bsdiff4.diff(base, new)
        return patch
    (folder / "base").write_bytes(base)
    (folder / "new").write_bytes(new)
    delta._write_zstd(folder / "base", folder / "new", folder / "out", level=3)
    return (folder / "out").read_bytes()


def rebuild(base: bytes, patch: bytes, *, codec: str, limit: int) -> bytes:
    """What apply writes; its digest is held against it."""
    out = io.BytesIO()
    digest = delta.apply(io.BytesIO(base), io.BytesIO(patch), out, format=codec, limit=limit)
    assert digest == hashlib.sha256(out.getvalue()).hexdigest()
    return out.getvalue()


def rules(count: int, seed: int = 1) -> bytes:
    dice = random.Random(seed)
    return b"".join(
        b'rule r%d { strings: $a = "%032x" }\n' % (n, dice.getrandbits(128)) for n in range(count)
    )


def bsdiff_stream(
    *, steps: list[tuple[int, int, int]], diff: bytes, extra: bytes, length: int
) -> bytes:
    def number(value: int) -> bytes:
        return (abs(value) | (1 << 63 if value < 0 else 0)).to_bytes(8, "little")

    control = bz2.compress(b"".join(number(n) for step in steps for n in step))
    packed = bz2.compress(diff)
    sizes = number(len(control)) + number(len(packed)) + number(length)
    return b"BSDIFF40" + sizes + control + packed + bz2.compress(extra)


def test_one_changed_line_in_five_megabytes_makes_an_incremental_of_less_than_a_packet(
    tmp_path: Path,
) -> None:
    base = rules(100_000)
    assert len(base) > 5_000_000
    new = base.replace(b"rule r50000 ", b"rule changed ")
    (tmp_path / "base").write_bytes(base)
    (tmp_path / "new").write_bytes(new)
    codec = delta.create(tmp_path / "base", tmp_path / "new", tmp_path / "out")
    patch = (tmp_path / "out").read_bytes()
    assert len(patch) < 1400
    assert rebuild(base, patch, codec=codec, limit=len(new)) == new


def test_the_whole_old_file_is_reachable_when_its_halves_change_places(tmp_path: Path) -> None:
    base = random.Random(2).randbytes(3_000_000)
    new = base[1_500_000:] + base[:1_500_000]
    patch = make(base, new, codec=delta.ZSTD_PREFIX, folder=tmp_path)
    assert len(patch) < 2000
    assert rebuild(base, patch, codec=delta.ZSTD_PREFIX, limit=len(new)) == new


def test_create_keeps_the_smaller_result(tmp_path: Path) -> None:
    # Every 40th byte moved by one: what bsdiff sums up, zstd has to spell out.
    base = random.Random(3).randbytes(40_000)
    shifted = bytes((byte + (at % 40 == 0)) % 256 for at, byte in enumerate(base))
    for new in (shifted, random.Random(4).randbytes(40_000)):
        (tmp_path / "base").write_bytes(base)
        (tmp_path / "new").write_bytes(new)
        codec = delta.create(tmp_path / "base", tmp_path / "new", tmp_path / "kept")
        patch = (tmp_path / "kept").read_bytes()
        for other in delta.FORMATS:
            assert len(patch) <= len(make(base, new, codec=other, folder=tmp_path))
        assert rebuild(base, patch, codec=codec, limit=len(new)) == new
    (tmp_path / "new").write_bytes(shifted)
    assert delta.create(tmp_path / "base", tmp_path / "new", tmp_path / "kept") == delta.BSDIFF


def test_repetition_doesnt_send_bsdiff_on_a_search_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bsdiff4, "diff", None)
    (tmp_path / "base").write_bytes(bytes(2_000_000))
    (tmp_path / "new").write_bytes(bytes(2_000_100))
    codec = delta.create(tmp_path / "base", tmp_path / "new", tmp_path / "out")
    assert codec == delta.ZSTD_PREFIX


def test_bsdiff_is_left_out_above_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "BSDIFF_BYTES_MAX", 1000)
    monkeypatch.setattr(bsdiff4, "diff", None)
    (tmp_path / "base").write_bytes(rules(100))
    (tmp_path / "new").write_bytes(rules(100, seed=2))
    codec = delta.create(tmp_path / "base", tmp_path / "new", tmp_path / "out")
    assert codec == delta.ZSTD_PREFIX


def test_what_is_too_large_to_rebuild_in_memory_travels_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta, "SIZE_MAX", 1000)
    (tmp_path / "base").write_bytes(bytes(10))
    (tmp_path / "new").write_bytes(bytes(1001))
    with pytest.raises(RebuildError, match="1,001 bytes, incrementals are made up to 1,000"):
        delta.create(tmp_path / "base", tmp_path / "new", tmp_path / "out")
    with pytest.raises(RebuildError, match="rebuilt up to 1,000"):
        rebuild(bytes(1001), b"", codec=delta.ZSTD_PREFIX, limit=10)


@FORMATS
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.binary(max_size=300), min_size=1, max_size=8), data=st.data())
@example(pieces=[b""], data=None)
def test_what_apply_makes_is_what_create_was_given(
    codec: str, pieces: list[bytes], data: st.DataObject | None, tmp_path: Path
) -> None:
    base = b"".join(pieces)
    order = data.draw(st.lists(st.sampled_from(pieces), max_size=10)) if data else []
    new = b"".join(order)
    patch = make(base, new, codec=codec, folder=tmp_path)
    assert rebuild(base, patch, codec=codec, limit=len(new)) == new


@FORMATS
@pytest.mark.parametrize("size", [0, 1, 7, 8, delta.CHUNK - 1, delta.CHUNK, 3 * delta.CHUNK + 1])
def test_sizes_around_the_chunk_come_back_exactly(codec: str, size: int, tmp_path: Path) -> None:
    base = random.Random(5).randbytes(size)
    for new in (base, base[::-1], base + b"more", base[: size // 2], b""):
        patch = make(base, new, codec=codec, folder=tmp_path)
        assert rebuild(base, patch, codec=codec, limit=len(new)) == new


BASE = rules(60)
NEW = BASE.replace(b"r17", b"seventeen") + random.Random(6).randbytes(500)


@FORMATS
def test_a_truncated_incremental_is_a_rebuild_error_at_every_length(
    codec: str, tmp_path: Path
) -> None:
    patch = make(BASE, NEW, codec=codec, folder=tmp_path)
    for length in range(len(patch)):
        with pytest.raises(RebuildError):
            rebuild(BASE, patch[:length], codec=codec, limit=len(NEW))


@FORMATS
@settings(
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_flipped_bit_is_a_rebuild_error_or_the_right_result(
    codec: str, data: st.DataObject, tmp_path: Path
) -> None:
    patch = bytearray(make(BASE, NEW, codec=codec, folder=tmp_path))
    at = data.draw(st.integers(0, len(patch) * 8 - 1))
    patch[at // 8] ^= 1 << at % 8
    try:
        found = rebuild(BASE, bytes(patch), codec=codec, limit=len(NEW))
    except RebuildError:
        return
    # bits that carry nothing, or that bsdiff's header leaves without a checksum
    assert len(found) <= len(NEW)


@FORMATS
@settings(deadline=None, max_examples=300)
@given(junk=st.binary(max_size=200), framed=st.booleans())
def test_junk_is_a_rebuild_error(codec: str, junk: bytes, *, framed: bool) -> None:
    head = {delta.BSDIFF: b"BSDIFF40", delta.ZSTD_PREFIX: b"\x28\xb5\x2f\xfd"}[codec]
    out = io.BytesIO()
    patch = io.BytesIO(head * framed + junk)
    with contextlib.suppress(RebuildError):
        delta.apply(io.BytesIO(BASE), patch, out, format=codec, limit=1000)
    assert len(out.getvalue()) <= 1000


@FORMATS
def test_the_wrong_base_never_gives_the_signed_result(codec: str, tmp_path: Path) -> None:
    patch = make(BASE, NEW, codec=codec, folder=tmp_path)
    try:
        found = rebuild(BASE[::-1], patch, codec=codec, limit=len(NEW))
    except RebuildError:
        return
    assert found != NEW


@FORMATS
def test_bytes_after_the_end_are_refused(codec: str, tmp_path: Path) -> None:
    patch = make(BASE, NEW, codec=codec, folder=tmp_path)
    for tail in (b"x", bytes(delta.CHUNK * 2)):
        with pytest.raises(RebuildError, match="follow the end"):
            rebuild(BASE, patch + tail, codec=codec, limit=len(NEW))


@FORMATS
def test_output_stops_at_the_signed_length(codec: str, tmp_path: Path) -> None:
    patch = make(b"", bytes(1_000_000), codec=codec, folder=tmp_path)
    out = io.BytesIO()
    with pytest.raises(RebuildError):
        delta.apply(io.BytesIO(), io.BytesIO(patch), out, format=codec, limit=100_000)
    assert len(out.getvalue()) <= 100_000


@FORMATS
def test_one_byte_past_the_signed_length_is_refused(codec: str, tmp_path: Path) -> None:
    patch = make(BASE, NEW, codec=codec, folder=tmp_path)
    with pytest.raises(RebuildError, match="signed"):
        rebuild(BASE, patch, codec=codec, limit=len(NEW) - 1)


def test_a_zstd_bomb_that_hides_its_size_stops_at_the_signed_length() -> None:
    packer = ZstdCompressor()
    patch = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    out = io.BytesIO()
    with pytest.raises(RebuildError):
        delta.apply(io.BytesIO(), io.BytesIO(patch), out, format=delta.ZSTD_PREFIX, limit=1 << 20)
    assert len(out.getvalue()) <= 1 << 20


def test_an_unknown_format_is_refused_by_name() -> None:
    with pytest.raises(RebuildError, match="format 'xdelta' is unknown; known are bsdiff4"):
        rebuild(b"", b"", codec="xdelta", limit=1)


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
            assert size <= delta.CHUNK
            return super().read(size)

    for control, diff in ((1 << 62, 0), (0, 1 << 62), (1 << 40, 1 << 40)):
        sizes = [control, diff, 10]
        head = b"BSDIFF40" + b"".join(size.to_bytes(8, "little") for size in sizes)
        with pytest.raises(RebuildError, match="for a result of 1,000"):
            delta.apply(io.BytesIO(), Header(head), io.BytesIO(), format=delta.BSDIFF, limit=1000)


def test_a_full_disk_is_not_blamed_on_the_incremental(tmp_path: Path) -> None:
    class Full(io.BytesIO):
        def write(self, _data: object, /) -> int:
            raise OSError(28, "No space left on device")

    for codec in delta.FORMATS:
        patch = make(BASE, NEW, codec=codec, folder=tmp_path)
        with pytest.raises(OSError, match="No space left"):
            delta.apply(io.BytesIO(BASE), io.BytesIO(patch), Full(), format=codec, limit=len(NEW))


def test_too_little_memory_is_a_rebuild_error() -> None:
    class Huge(io.BytesIO):
        def read(self, _size: int | None = -1, /) -> bytes:
            raise MemoryError

    with pytest.raises(RebuildError, match="too little memory for 10 bytes"):
        delta.apply(Huge(bytes(9)), io.BytesIO(), io.BytesIO(), format=delta.ZSTD_PREFIX, limit=10)


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
