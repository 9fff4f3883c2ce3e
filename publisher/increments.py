"""Incrementals and compressed copies: which are made, by how many processes, and which are kept.

* From the last 14 releases of the component that are in the feed, no more.
* An incremental is kept only if it is smaller than the compressed full file.
* Each is applied and its result compared before it counts as made.
* The base is held against its signed digest first: an incremental from a
  damaged base would serve nobody.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import msgspec

from feed import delta
from feed.errors import RebuildError
from feed.zstd import CompressionParameter, ZstdCompressor
from publisher.catalogue import digest_file
from publisher.errors import DamageError

# Below this many bytes of bases and results, starting processes takes longer than the work.
PARALLEL_BYTES_MIN = 8 << 20
READ_CHUNK = 1 << 20


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One incremental to make; paths are absolute."""

    name: str
    old: str
    new: str
    base: str
    base_digest: str
    full: str
    full_digest: str
    out: str


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a job. format is "" if none can be made; length and duration: bytes, s.

    keep says whether it is smaller than what it would replace.
    """

    name: str
    old: str
    new: str
    format: str
    length: int
    duration_s: float
    keep: bool = False


def make(job: Job) -> Made:
    """Make one incremental and prove it. Runs in a process of its own, or here.

    Raises DamageError: the base isn't what was signed, or the codec's result is wrong.
    """
    started = time.perf_counter()
    base, full, out = Path(job.base), Path(job.full), Path(job.out)
    if digest_file(base) != job.base_digest:
        raise DamageError(f"{base}: isn't what was signed; restore the feed folder from its copy")
    try:
        codec = delta.create(base, full, out)
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
        duration_s=time.perf_counter() - started,
    )


def _prove(job: Job, codec: str) -> None:
    limit = Path(job.full).stat().st_size
    with (
        Path(job.base).open("rb") as base,
        Path(job.out).open("rb") as made,
        tempfile.TemporaryFile() as result,
    ):
        digest = delta.apply(base, made, result, format=codec, limit=limit)
    if digest != job.full_digest:
        raise DamageError(
            f"{job.name} {job.old} → {job.new}: the {codec} incremental makes {digest[:12]}…, "
            f"not {job.full_digest[:12]}…; nothing was staged"
        )


def run(jobs: Sequence[Job], *, workers: int) -> Iterator[Made]:
    """Make all, in parallel where that is worth it, each yielded when it is done.

    workers 0 takes one process a CPU.
    """
    size = sum(Path(path).stat().st_size for job in jobs for path in (job.base, job.full))
    processes = min(workers or os.cpu_count() or 1, len(jobs))
    if processes <= 1 or size < PARALLEL_BYTES_MIN:
        yield from map(make, jobs)
        return
    with _pool(processes) as pool:
        for done in as_completed([pool.submit(make, job) for job in jobs]):
            yield done.result()


@contextmanager
def _pool(processes: int) -> Iterator[Executor]:
    # spawn: a forked child would inherit the terminal's progress thread half alive.
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def keep_smaller(made: Made, *, than: int) -> Made:
    """`made`, with `keep` decided: it has to be smaller than `than` bytes."""
    return msgspec.structs.replace(made, keep=bool(made.format) and made.length < than)


def compress(full: Path, out: Path, *, level: int) -> int | None:
    """Write the zstd copy of `full`. Returns its bytes; None if it wouldn't be smaller."""
    size = full.stat().st_size
    options: dict[int, int] = {
        CompressionParameter.compression_level: level,
        CompressionParameter.checksum_flag: 1,
    }
    compressor = ZstdCompressor(options=options)
    compressor.set_pledged_input_size(size)
    with full.open("rb") as source, out.open("wb") as sink:
        while chunk := source.read(READ_CHUNK):
            sink.write(compressor.compress(chunk))
        sink.write(compressor.flush())
    compressed = out.stat().st_size
    if compressed < size:
        return compressed
    out.unlink()
    return None


def copy_counting(source: Path, out: Path) -> str:
    """Copy a file; returns the SHA-256 of the bytes that were copied."""
    digest = hashlib.sha256()
    with source.open("rb") as taken, out.open("wb") as sink:
        while chunk := taken.read(READ_CHUNK):
            digest.update(chunk)
            sink.write(chunk)
    return digest.hexdigest()
