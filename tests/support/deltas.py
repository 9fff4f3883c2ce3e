"""Increments for tests: pairs of files of every sort, and segments put together by hand."""

from __future__ import annotations

import hashlib
import io
import random
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

from feed import delta
from feed.delta.effort import Effort
from feed.delta.format import BASE_CHECK_BYTES, RESULT_CHECK_BYTES, Codec, Header, varint


def make(base: bytes, new: bytes, *, effort: Effort = Effort.USUAL, **more: int) -> bytes:
    """What create writes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "base").write_bytes(base)
        (folder / "new").write_bytes(new)
        made = delta.create(folder / "base", folder / "new", folder / "out", effort=effort, **more)
        assert made == delta.SEGMENTS
        return (folder / "out").read_bytes()


def rebuild(base: bytes, patch: bytes, *, limit: int, codec: str = delta.SEGMENTS) -> bytes:
    """What apply writes; its digest is held against it."""
    out = io.BytesIO()
    try:
        digest = delta.apply(io.BytesIO(base), io.BytesIO(patch), out, format=codec, limit=limit)
    finally:
        assert len(out.getvalue()) <= limit
    assert digest == hashlib.sha256(out.getvalue()).hexdigest()
    return out.getvalue()


def container(
    base: bytes, new: bytes, segments: Sequence[tuple[int, int, bytes]], *, tail: bytes = b""
) -> bytes:
    """An increment of segments (codec, result length, payload), none of them the short last one."""
    heads = (
        bytes((codec,)) + varint(length) + varint(len(payload)) + payload
        for codec, length, payload in segments
    )
    return header(base, new) + b"".join(heads) + tail


def header(base: bytes, new: bytes) -> bytes:
    """The header of an increment from `base` to `new`."""
    base_check = hashlib.sha256(base).digest()[:BASE_CHECK_BYTES]
    result_check = hashlib.sha256(new).digest()[:RESULT_CHECK_BYTES]
    return Header(base_check, len(base), result_check, len(new)).pack()


def codecs(patch: bytes) -> list[Codec]:
    """The codecs of an increment's segments, in order."""
    from feed.delta import decode
    from feed.delta.format import HEAD_BYTES_MAX, take_header
    from feed.delta.source import Source

    source = Source(io.BytesIO(patch))
    head, at = take_header(source.head(0, HEAD_BYTES_MAX))
    return [segment.codec for segment, _ in decode.segments(source, head, at)]


def rules(count: int, seed: int = 1) -> bytes:
    """A file of text, some fifty bytes a rule."""
    dice = random.Random(seed)
    return b"".join(
        b'rule r%d { strings: $a = "%032x" }\n' % (n, dice.getrandbits(128)) for n in range(count)
    )


def table(records: int, *, shift: int, seed: int = 2) -> bytes:
    """Fields of four bytes, of which every third is an offset that `shift` moves."""
    dice = random.Random(seed)
    fields = [dice.getrandbits(24) + shift * (n % 3 == 0) for n in range(records)]
    return struct.pack(f"<{records}I", *fields)
