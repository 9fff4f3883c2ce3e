"""Increments that lie: always a RebuildError, within the signed length, never a crash."""

from __future__ import annotations

import contextlib
import hashlib
import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feed import delta
from feed.delta import layout
from feed.delta.covers import STREAMS
from feed.delta.format import (
    BASE_CHECK_BYTES,
    MAGIC,
    RESULT_CHECK_BYTES,
    Codec,
    varint,
    zigzag,
)
from feed.delta.streams import Method
from feed.errors import RebuildError
from feed.zstd import ZstdCompressor
from tests.fuzz.mutations import mutated, seeds
from tests.support.deltas import codecs, container, header, make, rebuild, rules

BASE = rules(60)
NEW = BASE.replace(b"r17", b"seventeen") + random.Random(6).randbytes(500)
HUGE = (1 << 31, 1 << 32, (1 << 63) - 1)
CHECKS = bytes(BASE_CHECK_BYTES + RESULT_CHECK_BYTES)


def stored(data: bytes) -> tuple[bytes, bytes]:
    """A stored stream: its line in the table, and itself."""
    return line(Method.STORED, len(data)), data


def line(method: int, length: int, *packed: int) -> bytes:
    """A stream's line in the table."""
    return varint(length << 3 | method) + b"".join(map(varint, packed))


def covers(count: int, **streams: bytes) -> bytes:
    """A covers payload of stored streams; those that aren't named are empty."""
    named = {name.replace(" ", "_"): name for name in STREAMS}
    assert set(streams) <= set(named)
    rows = [stored(streams[name]) for name in named if name in streams]
    present = sum(1 << number for number, name in enumerate(named) if name in streams)
    lines, bodies = (b"".join(row[part] for row in rows) for part in (0, 1))
    return varint(count << 1) + varint(present) + lines + bodies


def refused(segments: list[tuple[int, int, bytes]], problem: str, *, new: bytes = NEW) -> None:
    with pytest.raises(RebuildError, match=problem):
        rebuild(BASE, container(BASE, new, segments), limit=len(new))


@pytest.mark.parametrize("seed", range(len(seeds())))
def test_every_truncation_is_a_rebuild_error(seed: int) -> None:
    base, new, patch = seeds()[seed]
    for length in range(0, len(patch), max(1, len(patch) // 150)):
        with pytest.raises(RebuildError):
            rebuild(base, patch[:length], limit=len(new))


@pytest.mark.parametrize("seed", range(len(seeds())))
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_flipped_bit_is_a_rebuild_error_or_the_right_result(
    seed: int, data: st.DataObject
) -> None:
    base, new, patch = seeds()[seed]
    at = data.draw(st.integers(0, len(patch) * 8 - 1))
    changed = bytearray(patch)
    changed[at // 8] ^= 1 << at % 8
    with contextlib.suppress(RebuildError):
        assert rebuild(base, bytes(changed), limit=len(new)) == new


def test_mutations_by_the_thousand_are_rebuild_errors_or_the_right_result() -> None:
    dice = random.Random(20)
    for _ in range(2_000):
        base, new, patch = dice.choice(seeds())
        with contextlib.suppress(RebuildError):
            assert rebuild(base, mutated(patch, dice), limit=len(new)) == new


@settings(deadline=None, max_examples=300)
@given(junk=st.binary(max_size=200), framed=st.booleans())
def test_junk_is_a_rebuild_error(junk: bytes, *, framed: bool) -> None:
    head = header(BASE, NEW)
    with pytest.raises(RebuildError):
        rebuild(BASE, head * framed + junk, limit=len(NEW))


def test_another_base_of_the_same_length_is_named() -> None:
    other = bytes(reversed(BASE))
    with pytest.raises(RebuildError, match="the base is another one"):
        rebuild(other, make(BASE, NEW), limit=len(NEW))


def test_another_base_of_another_length_is_refused_at_once() -> None:
    with pytest.raises(RebuildError, match="the incremental is for"):
        rebuild(BASE[:-1], make(BASE, NEW), limit=len(NEW))


def test_another_result_is_refused() -> None:
    segment = (Codec.COPY, len(BASE), varint(0))
    refused([segment], "the result isn't the one", new=BASE[::-1])


def test_one_byte_past_the_signed_length_is_refused_before_anything_is_written() -> None:
    out = io.BytesIO()
    with pytest.raises(RebuildError, match="signed are"):
        delta.apply(
            io.BytesIO(BASE), io.BytesIO(make(BASE, NEW)), out, format=delta.SEGMENTS,
            limit=len(NEW) - 1,
        )  # fmt: skip
    assert not out.getvalue()


def test_a_later_version_is_refused_by_its_magic() -> None:
    patch = make(BASE, NEW)
    with pytest.raises(RebuildError, match="starts with 4802"):
        rebuild(BASE, b"H\x02" + patch[len(MAGIC) :], limit=len(NEW))


@pytest.mark.parametrize("size", HUGE)
def test_huge_lengths_are_refused_before_memory_is_taken(size: int) -> None:
    for codec in Codec:
        refused([(codec, size, b"")], "expected 1 to")
    head = header(BASE, NEW)
    for patch in (
        MAGIC + CHECKS + varint(size) + varint(10),
        MAGIC + CHECKS + varint(len(BASE)) + varint(size),
        MAGIC + CHECKS + varint(len(BASE)) + varint(zigzag(-len(BASE) - 1)),
        head + bytes((Codec.RAW,)) + varint(10) + varint(size),
    ):
        with pytest.raises(RebuildError):
            rebuild(BASE, patch, limit=len(NEW))
    length = varint(size)
    refused([(Codec.COPY, 10, length)], "a copy of 10 bytes at")
    refused([(Codec.RAW, 10, line(Method.LZMA, size >> 3, 1) + b"x")], "a stream of")
    refused([(Codec.PREFIX, 10, length + b"\0x")], "a prefix of")
    refused([(Codec.PREFIX, 10, b"\x11" + length + b"x")], "bytes at")
    refused([(Codec.COVERS, 10, length + b"\0")], "covers for 10 bytes")
    one = {"gaps": b"\0", "jumps": b"\0", "lengths": b"\12"}
    for name in one:
        payload = covers(1, **(one | {name: length}))
        refused([(Codec.COVERS, 10, payload)], "a stream has|a cover of|passes its")
    payload = covers(1, **one, places=length + b"\1", values_of_1=b"x")
    refused([(Codec.COVERS, 10, payload)], "past its segment")


@pytest.mark.parametrize(
    ("count", "streams", "problem"),
    [
        (1, {"gaps": b"\0", "jumps": b"\0", "lengths": b"\0"}, "a cover of 0 bytes"),
        (1, {"gaps": b"\0", "jumps": b"\1", "lengths": b"\12"}, "at -1 of an old file"),
        (2, {"gaps": b"\0", "jumps": b"\0", "lengths": b"\12"}, "1 covers, the table says 2"),
        (1, {"gaps": b"\0\0", "jumps": b"\0", "lengths": b"\12"}, "different lengths"),
        (1, {"gaps": b"\0", "jumps": b"\0", "lengths": b"\11"}, "has 9 of its 10 bytes"),
        (1, {"gaps": b"\0", "jumps": b"\0", "lengths": b"\13"}, "passes its 10 bytes"),
        (0, {"literals": b"123456789"}, "has 9 of its 10 bytes"),
        (0, {"literals": b"1234567890", "places": b"\0\0"}, "differences of 0 to 0 bytes"),
        (0, {"literals": b"1234567890", "places": b"\0"}, "a place and no width"),
        (0, {"literals": b"1234567890", "places": b"\0\1"}, "0 bytes where 1 are due"),
        (0, {"literals": b"1234567890", "values_of_1": b"x"}, "left over"),
        (0, {"literals": b"1234567890", "places": b"\12\1"}, "past its segment"),
        (0, {"literals": b"1234567890", "places": b"\x80"}, "ends inside a number"),
    ],
)
def test_covers_that_contradict_themselves_are_refused(
    count: int, streams: dict[str, bytes], problem: str
) -> None:
    refused([(Codec.COVERS, 10, covers(count, **streams))], problem)


def test_missing_and_overlapping_segments_are_refused() -> None:
    whole = (Codec.COPY, len(BASE), varint(0))
    for segments in ([], [whole], [whole, (Codec.COPY, 600, varint(0))]):
        with pytest.raises(RebuildError):
            rebuild(BASE, container(BASE, NEW, segments), limit=len(NEW))
    patch = container(BASE, BASE, [whole], tail=b"x")
    with pytest.raises(RebuildError, match="1 bytes follow the end"):
        rebuild(BASE, patch, limit=len(BASE))


def test_unknown_codecs_and_methods_are_refused_by_number() -> None:
    refused([(77, 10, b"")], "codec 77 is unknown")
    refused([(Codec.RAW, 10, line(7, 10))], "method 7 is unknown")
    refused([(Codec.RAW, 10, line(Method.EMPTY, 10, 1) + b"x")], "a stream of 10 bytes in 1")
    refused([(Codec.COVERS, 10, varint(0) + varint(1 << len(STREAMS)))], "known are 10")


def test_bombs_stop_at_their_segment() -> None:
    packer = ZstdCompressor()
    frame = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    payload = varint(1) + varint(0) + frame[4:]
    refused([(Codec.PREFIX, 1000, payload)], "passes its 1,000 bytes|malformed")
    bomb = line(Method.ZSTD, 1000, len(frame)) + frame
    refused([(Codec.RAW, 1000, bomb)], "longer than its table|malformed")


def test_a_stream_that_asks_for_a_larger_window_is_refused() -> None:
    frame = bytes((0x28, 0xB5, 0x2F, 0xFD, 0x00, 0xA0, 0x01, 0, 0))  # a window of 1 GiB
    bomb = line(Method.ZSTD, 1000, len(frame)) + frame
    refused([(Codec.RAW, 1000, bomb)], "malformed")


def test_segments_are_refused_one_by_one_in_a_resumed_rebuild(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layout, "SEGMENT_BYTES", 1000)
    patch = make(BASE, NEW)
    assert len(codecs(patch)) > 2
    out = io.BytesIO(NEW[:1500])
    with pytest.raises(RebuildError):
        delta.apply(
            io.BytesIO(BASE), io.BytesIO(patch[:-9]), out, format=delta.SEGMENTS, limit=len(NEW),
            resume=True,
        )  # fmt: skip
    assert hashlib.sha256(out.getvalue()[:1000]).digest() == hashlib.sha256(NEW[:1000]).digest()
