"""The arithmetic under increments: numbers as bytes, sums of strings, places in files."""

from __future__ import annotations

import io
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feed.delta import difference
from feed.delta.effort import Effort
from feed.delta.format import take_varint, unzigzag, varint, varints, zigzag
from feed.delta.pack import pack
from feed.delta.source import BLOCK_BYTES, Blocks, Source
from feed.delta.streams import WINDOW_MAX, Method, Unpacking, take_extent
from feed.errors import RebuildError


@given(st.lists(st.integers(0, (1 << 63) - 1)))
def test_numbers_come_back(values: list[int]) -> None:
    data, at, found = varints(values), 0, []
    while at < len(data):
        value, at = take_varint(data, at)
        found.append(value)
    assert found == values


@given(st.integers(-(1 << 62), (1 << 62) - 1))
def test_signed_numbers_come_back_and_small_ones_are_small(value: int) -> None:
    assert unzigzag(zigzag(value)) == value
    assert 0 <= zigzag(value) <= 2 * abs(value)


def test_a_number_of_more_than_63_bits_is_refused() -> None:
    assert take_varint(varint((1 << 63) - 1), 0)[0] == (1 << 63) - 1
    with pytest.raises(RebuildError, match="more than 63 bits"):
        take_varint(varint(1 << 63), 0)


@pytest.mark.parametrize("size", [0, 1, 255, 16_383, 16_384, 16_385, 40_000])
def test_subtracting_is_byte_by_byte(size: int) -> None:
    dice = random.Random(size)
    left, right = dice.randbytes(size), dice.randbytes(size)
    expected = bytes((a - b) % 256 for a, b in zip(left, right, strict=True))
    assert difference.subtract(left, right) == expected
    assert difference.add(right, expected) == left


@pytest.mark.parametrize("effort", list(Effort))
@pytest.mark.parametrize("kind", ["nothing", "few", "noise", "text", "words", "zeros"])
def test_a_packed_stream_comes_back_however_it_is_read(kind: str, effort: Effort) -> None:
    dice = random.Random(1)
    data = {
        "nothing": b"",
        "few": b"abc",
        "noise": dice.randbytes(90_000),
        "text": b"the quick brown fox " * 20_000,
        "words": b"".join(dice.randrange(900).to_bytes(4, "little") for _ in range(90_000)),
        "zeros": bytes(3_000_000),
    }[kind]
    extent, packed = pack(data, effort=effort)
    assert len(packed) <= len(data)
    assert (extent.method is Method.EMPTY) == (not data)
    if data:  # empty streams have no line
        line = extent.pack()
        assert take_extent(line, 0) == (extent, len(line))
    stream = Unpacking(Source(io.BytesIO(packed)), 0, extent, window_max=WINDOW_MAX)
    found = b"".join(stream.pieces(len(data), 77_777))
    stream.finish()
    assert found == data


@given(st.lists(st.tuples(st.integers(0, 3 * BLOCK_BYTES), st.integers(0, 2000)), max_size=30))
def test_blocks_give_what_the_file_has(reads: list[tuple[int, int]]) -> None:
    data = random.Random(2).randbytes(2 * BLOCK_BYTES + 77)
    blocks = Blocks(io.BytesIO(data))
    for at, size in reads:
        if at + size <= len(data):
            assert blocks.read(at, size) == data[at : at + size]
        else:
            with pytest.raises(RebuildError, match="of a file of"):
                blocks.read(at, size)
