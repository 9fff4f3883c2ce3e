"""Incrementals: which are made, proved and kept.

* From the last 14 releases of the component that are in the feed, no more.
* An incremental is kept only if it is worth it: smaller than a share of what
  travels otherwise, the compressed full file.
* Each is applied and its result compared before it counts as made.
* The base is held against its signed digest first: an incremental from a
  damaged base would serve nobody.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from feed import delta
from feed.errors import RebuildError
from publisher import budget
from publisher.catalogue import digest_file
from publisher.errors import DamageError
from publisher.work import Work


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One incremental to make; paths are absolute. memory_bytes is what it may take, all told."""

    name: str
    old: str
    new: str
    base: str
    base_digest: str
    full: str
    full_digest: str
    out: str
    effort: int = delta.Effort.USUAL
    threads: int = 1
    memory_bytes: int = delta.MEMORY_LIMIT_BYTES


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a job. format is "" if none can be made; length is bytes.

    share is that of the compressed full file, which it would replace. keep
    says whether it is published, why_not why it isn't. cpu_s is that of making
    and proving it.
    """

    name: str
    old: str
    new: str
    format: str
    length: int
    cpu_s: float = 0.0
    share: float = 0.0
    keep: bool = False
    why_not: str = ""


def make(job: Job) -> Made:
    """Make one incremental and prove it. Runs in a process of its own, or here.

    Raises DamageError: the base isn't what was signed, or the codec's result is wrong.
    """
    started = time.process_time()
    base, full, out = Path(job.base), Path(job.full), Path(job.out)
    if digest_file(base) != job.base_digest:
        raise DamageError(f"{base}: isn't what was signed; restore the feed folder from its copy")
    try:
        codec = delta.create(
            base,
            full,
            out,
            effort=delta.Effort(job.effort),
            threads=job.threads,
            memory_limit_bytes=budget.matching_limit(
                job.memory_bytes, base.stat().st_size, full.stat().st_size
            ),
        )
    except RebuildError:  # too large for any codec: it travels in full
        out.unlink(missing_ok=True)
        codec = ""
    if codec:
        _prove(job, codec)
    return Made(
        name=job.name,
        old=job.old,
        new=job.new,
        format=codec,
        length=out.stat().st_size if codec else 0,
        cpu_s=time.process_time() - started,
    )


def _prove(job: Job, codec: str) -> None:
    limit = Path(job.full).stat().st_size
    with (
        Path(job.base).open("rb") as base,
        Path(job.out).open("rb") as made,
        Path(os.devnull).open("wb") as result,  # its digest is all that is asked for
    ):
        digest = delta.apply(base, made, result, format=codec, limit=limit)
    if digest != job.full_digest:
        raise DamageError(
            f"{job.name} {job.old} → {job.new}: the {codec} incremental makes {digest[:12]}…, "
            f"not {job.full_digest[:12]}…; nothing was staged"
        )


def work(job: Job) -> Work[Made]:
    """The making of one incremental, as work."""
    base, full = Path(job.base).stat().st_size, Path(job.full).stat().st_size
    return Work(
        name=f"{job.name} {job.old} → {job.new}",
        call=_Make(job),
        size=full,
        need=budget.incremental_need(base, full, threads=job.threads),
    )


class _Make(msgspec.Struct, frozen=True):
    job: Job

    def __call__(self, granted: int) -> Made:
        return make(msgspec.structs.replace(self.job, memory_bytes=granted))


def judged(made: Made, *, than: int, worth_share: float) -> Made:
    """`made`, with `keep` decided: it has to be worth `worth_share` of `than` bytes."""
    share = made.length / than if than else 1.0
    why_not = ""
    if not made.format:
        share, why_not = 0.0, "too large for an incremental"
    elif made.length >= than:
        why_not = "not smaller than the full"
    elif share > worth_share:
        why_not = f"over {worth_share:.0%} of the full"
    return msgspec.structs.replace(made, share=share, keep=not why_not, why_not=why_not)


def line(made: Made) -> str:
    """What became of it, for a person."""
    edge = f"{made.name} {made.old} → {made.new}"
    if not made.format:
        return f"{edge}: {made.why_not}, travels in full"
    worth = "" if made.keep else f", {made.why_not}: left out"
    return (
        f"{edge}: {made.length:,} bytes, {made.share:.1%} of the full "
        f"({made.format}, {made.cpu_s:.1f} CPU s){worth}"
    )
