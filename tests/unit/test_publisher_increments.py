"""Incrementals and compressed copies: proven, smaller, the same in one process or many."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from feed import delta
from feed.zstd import ZstdDecompressor
from publisher import increments
from publisher.catalogue import digest_file
from publisher.errors import DamageError
from publisher.increments import Job, Made


def _job(folder: Path, old: bytes, new: bytes, *, number: int = 1) -> Job:
    base, full = folder / f"{number}.old", folder / f"{number}.new"
    base.write_bytes(old)
    full.write_bytes(new)
    return Job(
        name="pattern",
        old=str(number),
        new="99",
        base=str(base),
        base_digest=digest_file(base),
        full=str(full),
        full_digest=digest_file(full),
        out=str(folder / f"{number}.delta"),
    )


def _noise(seed: int, size: int = 20_000) -> bytes:
    return random.Random(seed).randbytes(size)


def test_an_incremental_rebuilds_what_it_was_made_for(tmp_path: Path) -> None:
    job = _job(tmp_path, _noise(1), _noise(1) + b"more")
    made = increments.make(job)
    assert made.format in delta.FORMATS
    assert made.length == Path(job.out).stat().st_size < 1_000


def test_a_damaged_base_is_refused(tmp_path: Path) -> None:
    job = _job(tmp_path, _noise(1), _noise(2))
    Path(job.base).write_bytes(b"damaged")
    with pytest.raises(DamageError, match=r"1\.old: isn't what was signed"):
        increments.make(job)


def test_a_codec_that_makes_something_else_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta, "apply", lambda *args, **more: "0" * 64)
    with pytest.raises(DamageError, match="nothing was staged"):
        increments.make(_job(tmp_path, _noise(1), _noise(2)))


def test_what_is_too_large_for_a_codec_travels_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta, "SIZE_MAX", 100)
    made = increments.make(_job(tmp_path, _noise(1), _noise(2)))
    assert (made.format, made.length) == ("", 0)
    assert not increments.keep_smaller(made, than=1000).keep


def test_only_what_is_smaller_is_kept() -> None:
    made = Made(name="p", old="1", new="2", format=delta.BSDIFF, length=100, duration_s=0.1)
    assert increments.keep_smaller(made, than=101).keep
    assert not increments.keep_smaller(made, than=100).keep


def test_many_processes_make_the_same_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = _noise(9)
    jobs = [_job(tmp_path, new[number:], new, number=number) for number in (1, 2)]
    alone = {made.old: made.length for made in increments.run(jobs, workers=1)}
    monkeypatch.setattr(increments, "PARALLEL_BYTES_MIN", 0)
    together = {made.old: made.length for made in increments.run(jobs, workers=2)}
    assert together == alone
    assert set(together) == {"1", "2"}


def test_no_jobs_are_no_work() -> None:
    assert list(increments.run([], workers=0)) == []


def test_a_compressed_copy_is_the_same_content(tmp_path: Path) -> None:
    full, out = tmp_path / "full", tmp_path / "full.zst"
    full.write_bytes(b"pattern " * 10_000)
    length = increments.compress(full, out, level=3)
    assert length == out.stat().st_size < 1_000
    assert ZstdDecompressor().decompress(out.read_bytes()) == full.read_bytes()


def test_a_compressed_copy_that_is_not_smaller_is_not_made(tmp_path: Path) -> None:
    full, out = tmp_path / "full", tmp_path / "full.zst"
    full.write_bytes(_noise(1))
    assert increments.compress(full, out, level=3) is None
    assert not out.exists()
