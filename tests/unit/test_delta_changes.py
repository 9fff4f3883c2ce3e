"""Adding the differences of a segment, and reading its numbers, piece by piece."""

from __future__ import annotations

import io
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feed.delta.changes import WIDTHS, Differences
from feed.delta.format import varints
from feed.delta.numbers import numbers
from feed.delta.source import Source
from feed.delta.streams import WINDOW_MAX, Extent, Method, Unpacking
from feed.errors import RebuildError

runs = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 6), st.integers(0, 400)),
        st.one_of(st.integers(1, 5).flatmap(lambda n: st.binary(min_size=n, max_size=n)),
                  st.binary(min_size=1, max_size=300)),
    ),
    max_size=40,
)  # fmt: skip


def stream(data: bytes) -> Unpacking:
    method = Method.STORED if data else Method.EMPTY
    extent = Extent(method, len(data), len(data))
    return Unpacking(Source(io.BytesIO(data)), 0, extent, window_max=WINDOW_MAX)


def differences(changes: list[tuple[int, bytes]]) -> Differences:
    """Of (bytes since the one before, value)."""
    values: dict[int, bytes] = dict.fromkeys(WIDTHS, b"")
    for _, value in changes:
        values[len(value) if len(value) in WIDTHS else 0] += value
    places = varints([number for skip, value in changes for number in (skip, len(value))])
    return Differences(stream(places), [stream(values[width]) for width in WIDTHS])


def expected(data: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    """One after the other, as long numbers."""
    at = 0
    for skip, value in changes:
        at += skip
        there, size = data[at : at + len(value)], len(value)
        total = int.from_bytes(there, "little") + int.from_bytes(value, "little")
        data = data[:at] + (total % 256**size).to_bytes(size, "little") + data[at + size :]
        at += size
    return data


@given(runs, st.integers(0, 400), st.integers(310, 2000), st.randoms())
def test_differences_are_added_whatever_the_pieces(
    changes: list[tuple[int, bytes]], tail: int, piece: int, dice: object
) -> None:
    length = sum(skip + len(value) for skip, value in changes) + tail
    data = dice.randbytes(length)  # type: ignore[attr-defined]
    adding, found, rest, start = differences(changes), b"", b"", 0
    for at in range(0, max(length, 1), piece):
        part = bytearray(rest + data[at : at + piece])
        rest = adding.add(part, start)
        found += part
        start += len(part)
    adding.finish()
    assert rest == b""
    assert found == expected(data, changes)


def test_a_difference_past_its_segment_is_refused() -> None:
    adding = differences([(5, b"abc")])
    piece = bytearray(7)
    assert adding.add(piece, 0) == bytes(2)
    with pytest.raises(RebuildError, match="past its segment"):
        adding.finish()


@given(st.lists(st.one_of(st.integers(0, 127), st.integers(0, (1 << 63) - 1)), max_size=3000))
def test_numbers_come_back_from_a_stream(values: list[int]) -> None:
    assert list(numbers(stream(varints(values)))) == values


@pytest.mark.parametrize("padding", [0, 8191, 100_000])
def test_a_number_is_whole_across_batches_or_refused(padding: int) -> None:
    data = bytes(padding) + varints([1 << 62])
    assert list(accumulate(numbers(stream(data))))[-1] == 1 << 62
    with pytest.raises(RebuildError, match="inside a number"):
        list(numbers(stream(data[:-1])))
    with pytest.raises(RebuildError, match="more than 63 bits"):
        list(numbers(stream(bytes(padding) + b"\x80" * 9 + b"\1")))
