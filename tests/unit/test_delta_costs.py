"""What increments that lie may cost: no more than their signed length, whatever each field says."""

from __future__ import annotations

import bz2
import contextlib
import functools
import io
import lzma
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feed import delta
from feed.delta.format import SEGMENT_BYTES_MAX, Codec, Header, varint
from feed.delta.streams import Method
from feed.errors import RebuildError
from feed.zstd import ZstdCompressor
from tests.support.deltas import container, header, make, rebuild, rules

BASE = rules(20)
NEW = BASE[300:] + BASE[:300].replace(b"r1", b"one")
SIGNED_BYTES_MAX = 1 << 20
BOMB_BYTES = 256 << 20

numbers = st.sampled_from(
    [0, 1, 7, 127, 128, 300, len(BASE) - 1, len(BASE), len(NEW), len(NEW) + 1, 1 << 20]
    + [(1 << bits) + more for bits in (31, 32, 63) for more in (-1, 0, 1)]
)
ZSTD = ZstdCompressor().compress(NEW, ZstdCompressor.FLUSH_FRAME)
pieces = numbers.map(varint) | st.binary(max_size=20) | st.sampled_from([ZSTD, ZSTD[4:], NEW])
payloads = st.lists(pieces, max_size=5).map(b"".join)
codecs = st.sampled_from([*Codec, 5, 77, *(codec | 0x80 for codec in Codec)])


@st.composite
def segments(draw: st.DrawFn) -> bytes:
    """A head of any numbers before any payload, whose length it may tell right."""
    payload = draw(payloads)
    length = draw(st.just(len(payload)) | numbers)
    return bytes((draw(codecs),)) + varint(draw(numbers)) + varint(length) + payload


heads = st.just(header(BASE, NEW)) | st.builds(
    lambda old, new: Header(bytes(2), old, bytes(4), new).pack(), numbers, numbers
)


@settings(deadline=None, max_examples=500)
@given(heads, st.lists(segments(), max_size=4), numbers)
def test_any_numbers_in_any_fields_are_a_rebuild_error_or_a_digest_that_tells(
    head: bytes, made: list[bytes], limit: int
) -> None:
    with contextlib.suppress(RebuildError):
        rebuild(BASE, head + b"".join(made), limit=min(limit, SIGNED_BYTES_MAX))


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_number_put_anywhere_is_a_rebuild_error_or_a_digest_that_tells(
    data: st.DataObject,
) -> None:
    patch = make_once()
    at = data.draw(st.integers(0, len(patch)))
    width = data.draw(st.integers(0, 9))
    changed = patch[:at] + varint(data.draw(numbers)) + patch[at + width :]
    with contextlib.suppress(RebuildError):
        rebuild(BASE, changed, limit=len(NEW))


@functools.cache
def make_once() -> bytes:
    return make(BASE, NEW)


@pytest.mark.parametrize("at", range(8, 32, 8))
@pytest.mark.parametrize("value", [1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_standard_patch_with_impossible_lengths_is_refused(at: int, value: int) -> None:
    patch = bytearray(standard(bz2.compress(bytes(24)), size=len(NEW)))
    struct.pack_into("<Q", patch, at, value)
    with pytest.raises(RebuildError):
        rebuild(BASE, bytes(patch), limit=len(NEW), codec=delta.BSDIFF)


def standard(control: bytes, *, size: int) -> bytes:
    """A BSDIFF40 patch of empty differences."""
    empty = bz2.compress(b"")
    lengths = struct.pack("<QQQ", len(control), len(empty), size)
    return b"BSDIFF40" + lengths + control + empty + empty


def zeros(method: Method) -> bytes:
    """BOMB_BYTES zeros, packed."""
    if method is Method.ZSTD:
        packer = ZstdCompressor()
        parts = (packer.compress(bytes(1 << 20)) for _ in range(BOMB_BYTES >> 20))
        return b"".join(parts) + packer.flush()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 20}]
    coder = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=filters)
    return b"".join(coder.compress(bytes(1 << 20)) for _ in range(BOMB_BYTES >> 20)) + coder.flush()


def bombs() -> list[tuple[str, bytes]]:
    """(format, increment): small ones that would make a quarter of a GB, or loop as often."""
    found = []
    for method in (Method.ZSTD, Method.LZMA):
        packed = zeros(method)
        for length in (1, len(NEW), SEGMENT_BYTES_MAX):
            line = varint(length << 3 | method) + varint(len(packed))
            found.append(container(BASE, NEW, [(Codec.RAW, len(NEW), line + packed)]))
            covers = varint(2) + varint((1 << 10) - 1) + line * 10 + packed * 10
            found.append(container(BASE, NEW, [(Codec.COVERS, len(NEW), covers)]))
    frame = zeros(Method.ZSTD)[4:]
    prefix = varint(len(BASE)) + varint(0) + frame
    found.append(container(BASE, NEW, [(Codec.PREFIX, len(NEW), prefix)]))
    found += [
        container(BASE, NEW, [(codec, length, varint(length))])
        for codec in Codec
        for length in (SEGMENT_BYTES_MAX, 1 << 32, (1 << 63) - 1)
    ]
    empty_steps = standard(bz2.compress(bytes(BOMB_BYTES)), size=len(NEW))
    return [*((delta.SEGMENTS, patch) for patch in found), (delta.BSDIFF, empty_steps)]


_APPLY = """
import io, pickle, sys, time
from feed import delta
from feed.errors import RebuildError

def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) << 10

base, size, patches = pickle.load(sys.stdin.buffer)
before, slowest, refused = peak(), 0.0, 0
for format, patch in patches:
    began = time.process_time()
    try:
        delta.apply(io.BytesIO(base), io.BytesIO(patch), io.BytesIO(), format=format, limit=size)
    except RebuildError:
        refused += 1
    slowest = max(slowest, time.process_time() - began)
print(refused, peak() - before, slowest)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM")
def test_bombs_take_neither_memory_nor_time() -> None:
    patches = bombs()
    run = subprocess.run(
        [sys.executable, "-c", _APPLY],
        input=pickle.dumps((BASE, len(NEW), patches)),
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    refused, grown_bytes, slowest_s = map(float, run.stdout.split())
    assert refused == len(patches)
    assert grown_bytes < 40 << 20
    assert slowest_s < 1.0


def test_a_rebuild_reads_no_further_than_it_has_to() -> None:
    """Of a large payload behind a head that lies, nothing is taken in."""
    patch = container(BASE, NEW, [(Codec.RAW, len(NEW) + 1, bytes(8 << 20))])
    source = Counting(patch)
    with pytest.raises(RebuildError):
        delta.apply(io.BytesIO(BASE), source, io.BytesIO(), format=delta.SEGMENTS, limit=len(NEW))
    assert source.taken < 1 << 20


class Counting(io.BytesIO):
    """Counts the bytes that are read."""

    taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data
