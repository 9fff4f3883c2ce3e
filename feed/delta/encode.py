"""Make an increment in the segment format (docs/delta-format.md).

The new file is cut into segments, each of which is written by the codec that
makes least of it. Where its bytes are in the old file is found first, by
`matching`, for the whole file; a segment may take from anywhere.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from feed.delta import layout, match, matching, prefix
from feed.delta.covers import STREAMS, take_table
from feed.delta.effort import Effort
from feed.delta.format import (
    BASE_CHECK_BYTES,
    HEAD_BYTES_MAX,
    RESULT_CHECK_BYTES,
    Codec,
    Header,
    Made,
    varint,
)
from feed.delta.match import Cover
from feed.delta.pack import pack

_READ_BYTES = 1 << 20
# Above, a prefix isn't tried where much is fields that moved: it can't say those.
_ALWAYS_BOTH_BYTES = 1 << 20
_MOSTLY_DIFFERENCES = 0.3
# bsdiff's search is quadratic in repetition, a minute for 2 MB of zeros.
_TWO_MATCHERS_BYTES = 256 << 10

Buffer = bytes | mmap.mmap


class _Job(NamedTuple):
    """What making one increment needs all along."""

    old: Buffer
    new: Buffer
    effort: Effort
    threads: int
    others: list[Cover]  # what bsdiff's matcher finds, for small files


def create(
    base: Path,
    new: Path,
    out: Path,
    *,
    effort: Effort,
    memory_limit: int,
    threads: int,
    progress: Callable[[int], None] | None,
) -> None:
    """Write the increment from `base` to `new` to `out`; see feed.delta.create."""
    with _mapped(base) as old_bytes, _mapped(new) as new_bytes, out.open("wb") as sink:
        header = Header(
            base_check=_digest(old_bytes)[:BASE_CHECK_BYTES],
            base_length=len(old_bytes),
            result_check=_digest(new_bytes)[:RESULT_CHECK_BYTES],
            result_length=len(new_bytes),
        )
        sink.write(header.pack())
        job = _Job(old_bytes, new_bytes, effort, threads, _others(old_bytes, new_bytes))
        found = matching.find(old_bytes, new_bytes, memory_limit=memory_limit)
        done = 0
        for start, end, covers in layout.cut(found, len(new_bytes)):
            if progress is not None:
                progress(done)
            made = _smallest(job, start, end, covers)
            done = end
            for segment in made:
                sink.write(segment.pack(last=segment is made[-1] and end == len(new_bytes)))
        if progress is not None:
            progress(done)


@contextmanager
def _mapped(path: Path) -> Iterator[Buffer]:
    with path.open("rb") as file:
        if not path.stat().st_size:  # nothing can't be mapped
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            yield mapped


def _others(old: Buffer, new: Buffer) -> list[Cover]:
    if max(len(old), len(new)) > _TWO_MATCHERS_BYTES:
        return []
    return match.covers_of_bsdiff(old[:], new[:])


def _digest(data: Buffer) -> bytes:
    digest = hashlib.sha256()
    for at in range(0, len(data), _READ_BYTES):
        digest.update(data[at : at + _READ_BYTES])
    return digest.digest()


def _smallest(job: _Job, start: int, end: int, covers: list[Cover]) -> list[Made]:
    """The segment, or segments, that make least of new[start:end]."""
    if _is_copy(job, start, end, covers):
        return [Made(Codec.COPY, end - start, varint(covers[0].old))]
    found = [_covered(job, start, end, covers)]
    if job.others:
        found = min(
            found, [_covered(job, start, end, layout.within(job.others, start, end))], key=_size
        )
    if end - start > _ALWAYS_BOTH_BYTES and _differences_share(found[0]) > _MOSTLY_DIFFERENCES:
        return found
    other = prefix.segments(
        job.old, job.new, start, end, covers, effort=job.effort, than=_size(found)
    )
    return min(found, other, key=_size) if other else found


def _differences_share(made: Made) -> float:
    """Of a segment's payload, what is neither literals nor covers: fields that moved."""
    if made.codec is not Codec.COVERS:
        return 0.0
    table, _ = take_table(made.payload[:HEAD_BYTES_MAX], len(made.payload))
    moved = sum(
        extent.packed_length
        for name, extent in zip(STREAMS, table.extents, strict=True)
        if name == "places" or name.startswith("values")
    )
    return moved / len(made.payload)


def _size(made: list[Made]) -> int:
    return sum(len(segment.payload) for segment in made)


def _is_copy(job: _Job, start: int, end: int, covers: list[Cover]) -> bool:
    """Whether new[start:end] is one range of the old file."""
    if len(covers) != 1 or covers[0].length != end - start:
        return False
    for at in range(0, end - start, _READ_BYTES):
        size = min(_READ_BYTES, end - start - at)
        there = covers[0].old + at
        if job.old[there : there + size] != job.new[start + at : start + at + size]:
            return False
    return True


def _covered(job: _Job, start: int, end: int, covers: list[Cover]) -> Made:
    if covers:
        payload = layout.payload(
            job.old, job.new, start, end, covers, effort=job.effort, threads=job.threads
        )
        return Made(Codec.COVERS, end - start, payload)
    extent, packed = pack(job.new[start:end], effort=job.effort)
    return Made(Codec.RAW, end - start, extent.pack() + packed)
