"""Increments: small when little changed, exact, resumable, and never worse than an error."""

from __future__ import annotations

import hashlib
import io
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from feed import delta
from feed.delta import anchors, layout, matching, prefix
from feed.delta.effort import Effort
from feed.delta.format import Codec
from feed.errors import RebuildError
from tests.support.deltas import codecs, make, rebuild, rules, table

NOISE = random.Random(3).randbytes(300_000)

PAIRS = {
    "nothing to nothing": (b"", b""),
    "nothing to something": (b"", rules(50)),
    "something to nothing": (rules(50), b""),
    "one byte": (b"a", b"b"),
    "the same": (NOISE, NOISE),
    "a changed line": (rules(3000), rules(3000).replace(b"rule r1500 ", b"rule changed ")),
    "moved fields": (table(30_000, shift=0), table(30_000, shift=70_000)),
    "few moved fields": (NOISE[:9000], NOISE[:4000] + b"?" + NOISE[4001:9000]),
    "halves swapped": (NOISE, NOISE[150_000:] + NOISE[:150_000]),
    "unrelated": (NOISE[:5000], random.Random(4).randbytes(7000)),
    "shorter": (NOISE, NOISE[5000:90_000]),
    "repetition": (bytes(40_000), bytes(50_000)),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("effort", list(Effort))
def test_what_apply_makes_is_what_create_was_given(name: str, effort: Effort) -> None:
    base, new = PAIRS[name]
    assert rebuild(base, make(base, new, effort=effort), limit=len(new)) == new


@settings(deadline=None, max_examples=60)
@given(pieces=st.lists(st.binary(max_size=300), min_size=1, max_size=8), data=st.data())
@example(pieces=[b""], data=None)
def test_any_two_files_come_back_exactly(pieces: list[bytes], data: st.DataObject | None) -> None:
    base = b"".join(pieces)
    new = b"".join(data.draw(st.lists(st.sampled_from(pieces), max_size=10)) if data else [])
    assert rebuild(base, make(base, new), limit=len(new)) == new


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1 << 32), step=st.integers(1, 200), width=st.integers(1, 9))
def test_numbers_that_carry_come_back_exactly(seed: int, step: int, width: int) -> None:
    dice = random.Random(seed)
    base = dice.randbytes(20_000)
    new = bytearray(base)
    for at in range(0, len(base) - width, step + width):
        value = int.from_bytes(base[at : at + width], "little") + dice.randrange(1, 1000)
        new[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    assert rebuild(base, make(base, bytes(new)), limit=len(new)) == new


def test_one_changed_line_in_five_megabytes_takes_less_than_a_hundred_bytes() -> None:
    base = rules(100_000)
    assert len(base) > 5_000_000
    new = base.replace(b"rule r50000 ", b"rule changed ")
    patch = make(base, new)
    assert len(patch) < 100
    assert rebuild(base, patch, limit=len(new)) == new


def test_an_unchanged_file_takes_a_score_of_bytes() -> None:
    patch = make(NOISE, NOISE)
    assert codecs(patch) == [Codec.COPY]
    assert len(patch) < 24


def test_fields_that_moved_alike_cost_next_to_nothing_whatever_carries() -> None:
    base, new = table(30_000, shift=0), table(30_000, shift=70_000)
    assert len(make(base, new)) < 15_000  # a third of them changed in three bytes: 30,000


def test_noise_is_stored() -> None:
    new = random.Random(9).randbytes(50_000)
    assert len(make(NOISE, new)) <= len(new) + 32


def test_large_files_are_matched_through_anchors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "_ANCHORS_FROM_BYTES", 0)
    dice = random.Random(5)
    blocks = [dice.randbytes(9_000) for _ in range(60)]
    base = b"".join(blocks)
    dice.shuffle(blocks)
    new = b"?" * 50 + b"".join(blocks)[:400_000]
    runs = anchors.runs(base, new, memory_limit=1 << 20)
    assert sum(run.length for run in runs) > 390_000
    assert all(
        base[run.old : run.old + run.length] == new[run.new : run.new + run.length] for run in runs
    )
    patch = make(base, new)
    assert len(patch) < 500
    assert rebuild(base, patch, limit=len(new)) == new


def test_with_little_memory_the_leftovers_are_matched_in_parts() -> None:
    base = table(60_000, shift=0)
    new = base[100_000:] + table(30_000, shift=7, seed=8) + base[:100_000]
    patch = make(base, new, memory_limit_bytes=600_000)
    assert len(patch) < len(new) // 2
    assert rebuild(base, patch, limit=len(new)) == new


def test_segments_and_windows_fit_together_wherever_they_are_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layout, "SEGMENT_BYTES", 10_007)
    for window, result in ((5_000, 3_000), (1 << 20, 1 << 20)):
        monkeypatch.setattr(prefix, "PREFIX_WINDOW_MAX", window)
        monkeypatch.setattr(prefix, "PREFIX_RESULT_MAX", result)
        for base, new in PAIRS.values():
            assert rebuild(base, make(base, new), limit=len(new)) == new


def test_progress_goes_from_nothing_to_the_length(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(NOISE)
    (tmp_path / "new").write_bytes(NOISE[1000:])
    seen: list[int] = []
    delta.create(tmp_path / "old", tmp_path / "new", tmp_path / "out", progress=seen.append)
    assert (seen[0], seen[-1]) == (0, len(NOISE) - 1000)
    assert seen == sorted(seen)


def test_what_is_too_large_travels_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "SIZE_MAX", 1000)
    (tmp_path / "base").write_bytes(bytes(10))
    (tmp_path / "new").write_bytes(bytes(1001))
    with pytest.raises(RebuildError, match="1,001 bytes, incrementals are made up to 1,000"):
        delta.create(tmp_path / "base", tmp_path / "new", tmp_path / "out")


@pytest.mark.parametrize("kept", [0, 1, 9_999, 10_000, 10_001, 35_000, 299_999, 300_000])
def test_a_rebuild_goes_on_behind_the_last_whole_segment(
    kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "SEGMENT_BYTES", 10_000)
    new = NOISE[:150_000] + bytes(10) + NOISE[150_010:]
    patch = make(NOISE, new)
    out = io.BytesIO(new[:kept])
    digest = delta.apply(
        io.BytesIO(NOISE),
        io.BytesIO(patch),
        out,
        format=delta.SEGMENTS,
        limit=len(new),
        resume=True,
    )
    assert digest == hashlib.sha256(new).hexdigest()
    assert out.getvalue() == new


def test_what_a_crash_tore_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SEGMENT_BYTES", 10_000)
    patch = make(NOISE, NOISE[::-1][:50_000])
    out = io.BytesIO(bytes(30_000))
    with pytest.raises(RebuildError, match="the result isn't the one"):
        delta.apply(
            io.BytesIO(NOISE), io.BytesIO(patch), out, format=delta.SEGMENTS, limit=50_000,
            resume=True,
        )  # fmt: skip


def test_an_unknown_format_is_refused_by_name() -> None:
    with pytest.raises(RebuildError, match="format 'xdelta' is unknown; known are bsdiff4"):
        rebuild(b"", b"", codec="xdelta", limit=1)


def test_a_full_disk_is_not_blamed_on_the_incremental() -> None:
    class Full(io.BytesIO):
        def write(self, _data: object, /) -> int:
            raise OSError(28, "No space left on device")

    patch = io.BytesIO(make(NOISE, NOISE[7:]))
    with pytest.raises(OSError, match="No space left"):
        delta.apply(io.BytesIO(NOISE), patch, Full(), format=delta.SEGMENTS, limit=len(NOISE))


def test_too_little_memory_is_a_rebuild_error() -> None:
    class Huge(io.BytesIO):
        def read(self, _size: int | None = -1, /) -> bytes:
            raise MemoryError

    with pytest.raises(RebuildError, match="too little memory for 10 bytes"):
        delta.apply(Huge(b"x"), Huge(b"x"), io.BytesIO(), format=delta.SEGMENTS, limit=10)


def test_an_endpoint_needs_no_hdiffpatch() -> None:
    program = (
        "import sys; sys.modules['hdiffpatch'] = None; sys.modules['bsdiff4'] = None\n"
        "from feed import delta; print(delta.FORMATS)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert b"segments-1" in run.stdout


_PEAK = """
import os, sys
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) << 10
bare = peak()
from feed import delta
base, patch, new = sys.argv[1:]
with open(base, "rb") as old, open(patch, "rb") as made, open(new + ".out", "wb") as out:
    delta.apply(old, made, out, format=delta.SEGMENTS, limit=os.path.getsize(new))
print(peak() - bare)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM")
@pytest.mark.parametrize("kind", ["pattern", "text", "fields"])
def test_applying_takes_less_than_forty_megabytes(kind: str, tmp_path: Path) -> None:
    dice = random.Random(6)
    if kind == "pattern":
        base = dice.randbytes(48 << 20)
        new = base[: 20 << 20] + dice.randbytes(9 << 20) + base[21 << 20 :]
    elif kind == "text":
        base = rules(240_000)
        new = base[: 6 << 20] + rules(30_000, seed=7)
    else:
        base, new = table(3_000_000, shift=0), table(3_000_000, shift=1000)
    old, made, result = (tmp_path / name for name in ("old", "made", "new"))
    old.write_bytes(base)
    result.write_bytes(new)
    delta.create(old, result, made, effort=Effort.QUICK)
    arguments = [sys.executable, "-c", _PEAK, *map(os.fspath, (old, made, result))]
    run = subprocess.run(arguments, capture_output=True, check=True)
    assert int(run.stdout) < 40 << 20


def test_threads_make_the_same_increment() -> None:
    base, new = table(40_000, shift=0), table(40_000, shift=70_000)
    assert make(base, new, threads=4) == make(base, new)
