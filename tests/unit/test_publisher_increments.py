"""Incrementals: proven, worth it, the same from one process or many."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from feed import delta
from publisher import increments, work
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
    judged = increments.judged(made, than=1000, worth_share=1.0)
    assert (judged.keep, judged.why_not) == (False, "too large for an incremental")


@pytest.mark.parametrize(
    ("than", "worth_share", "why_not"),
    [
        (101, 1.0, ""),
        (100, 1.0, "not smaller than the full"),
        (143, 0.7, ""),
        (142, 0.7, "over 70% of the full"),
        (0, 0.7, "not smaller than the full"),
    ],
)
def test_only_what_is_worth_it_is_kept(than: int, worth_share: float, why_not: str) -> None:
    made = Made(name="p", old="1", new="2", format=delta.SEGMENTS, length=100)
    judged = increments.judged(made, than=than, worth_share=worth_share)
    assert (judged.keep, judged.why_not) == (not why_not, why_not)


def test_many_processes_make_the_same_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = _noise(9)
    jobs = [_job(tmp_path, new[number:], new, number=number) for number in (1, 2)]
    alone = _lengths(jobs, workers=1)
    monkeypatch.setattr(work, "PARALLEL_BYTES_MIN", 0)
    assert _lengths(jobs, workers=2) == alone
    assert set(alone) == {"1", "2"}


def _lengths(jobs: list[Job], *, workers: int) -> dict[str, int]:
    items = [increments.work(job) for job in jobs]
    found = work.run(items, workers=workers, memory_limit=2 << 30)
    return {made.old: made.length for _, made in found}


def test_no_jobs_are_no_work() -> None:
    assert list(work.run([], workers=0, memory_limit=2 << 30)) == []
