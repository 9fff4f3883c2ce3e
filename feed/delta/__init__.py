"""Make an incremental, and rebuild a component from it.

`create` writes the segment format (docs/delta-format.md): ranges of the old
file with their differences, found with HDiffPatch's matcher, or whatever else
is smallest, segment by segment. `apply` needs none of that machinery, only the
decoders of Python's own lzma and zstd; besides, it takes standard BSDIFF40.

An incremental is signed, yet a decoder is never trusted with it: every length
is held against its limits before memory is taken, and whatever is malformed
ends in RebuildError, upon which the full file is fetched.

Memory of apply: less than 40 MB over the process, at any size. Memory of
create: what it is given; see create.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from feed.delta import bsdiff, decode
from feed.delta import format as segment_format
from feed.delta.effort import MEMORY_LIMIT_BYTES, Effort
from feed.delta.source import Blocks, Source
from feed.errors import RebuildError

BSDIFF = "bsdiff4"
SEGMENTS = "segments-1"
FORMATS = (BSDIFF, SEGMENTS)

# What is larger travels in full: the bytes a manifest may say.
SIZE_MAX = segment_format.SIZE_MAX

__all__ = [
    "BSDIFF",
    "FORMATS",
    "MEMORY_LIMIT_BYTES",
    "SEGMENTS",
    "SIZE_MAX",
    "Effort",
    "apply",
    "create",
]


def create(
    base: Path,
    new: Path,
    out: Path,
    *,
    effort: Effort = Effort.USUAL,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Write the incremental that makes `new` from `base` to `out`.

    memory_limit_bytes bounds what matching and packing take, about, beside the
    mapped files; with less, far and small moves are found less well. With
    threads, the streams of a segment are packed side by side. progress is called
    with the bytes of `new` that are done, from 0 up to its length.

    Returns its format. It may well be as large as `new`: the caller decides
    whether it is worth publishing.

    Raises RebuildError: base or new is above SIZE_MAX, so only the full file
    can travel. OSError: a file can't be read or written. ImportError: the
    publisher's dependencies aren't installed.
    """
    larger = max(base.stat().st_size, new.stat().st_size)
    if larger > SIZE_MAX:
        raise RebuildError(
            f"{new}: {larger:,} bytes, incrementals are made up to {SIZE_MAX:,}; it travels in full"
        )
    from feed.delta import encode  # noqa: PLC0415 - endpoints have no HDiffPatch

    encode.create(
        base,
        new,
        out,
        effort=effort,
        memory_limit=memory_limit_bytes,
        threads=threads,
        progress=progress,
    )
    return SEGMENTS


def apply(
    base: BinaryIO,
    delta: BinaryIO,
    out: BinaryIO,
    *,
    format: str,  # noqa: A002 - the feed's word
    limit: int,
    resume: bool = False,
) -> str:
    """Rebuild a component from its base and write it to `out`.

    base and delta must be seekable; out is written forwards. Writing stops at
    `limit` bytes, the signed length. See the module for memory.

    With resume, out must be readable and seekable as well: the whole segments
    that it holds from an attempt before are digested and kept, what follows
    them is cut off, and the rest is rebuilt. BSDIFF40 has no segments and
    starts again. Should the digest then be wrong, what a crash had left was
    torn: rebuild once without resume.

    Returns the lowercase hex SHA-256 of the result. The caller compares it:
    bytes in `out` are untrusted until then.

    Raises RebuildError: unknown format, malformed or truncated stream, another
    base or result, output past `limit`, or too little memory. OSError: base,
    delta or out failed.
    """
    try:
        if format == SEGMENTS:
            return decode.rebuild(base, delta, out, limit=limit, resume=resume)
        if format == BSDIFF:
            return _apply_bsdiff(base, delta, out, limit=limit, resume=resume)
    except RebuildError as error:
        raise RebuildError(f"{format}: {error}") from error
    except MemoryError as error:
        raise RebuildError(f"{format}: too little memory for {limit:,} bytes") from error
    raise RebuildError(f"format {format!r} is unknown; known are {', '.join(FORMATS)}")


def _apply_bsdiff(
    base: BinaryIO, delta: BinaryIO, out: BinaryIO, *, limit: int, resume: bool
) -> str:
    if resume:
        out.seek(0)
        out.truncate()
    digest = hashlib.sha256()
    for piece in bsdiff.rebuild(Blocks(base), Source(delta), limit=limit):
        digest.update(piece)
        out.write(piece)
    return digest.hexdigest()
