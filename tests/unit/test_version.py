"""Versions compare as the numbers they are made of."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feed import version
from feed.errors import ManifestError

numbers = st.lists(
    st.integers(0, 10**version.DIGITS_MAX - 1), min_size=1, max_size=version.PARTS_MAX
)


def text(parts: list[int]) -> str:
    return ".".join(map(str, parts))


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("2.998.00", "3.100.00"),
        ("173", "175"),
        ("99", "100"),
        ("9.9", "9.10"),
        ("17.591.00", "17.591.01"),
        ("1.0", "1.0.1"),
        ("22.600.1004", "22.600.1010"),
    ],
)
def test_versions_compare_as_numbers_and_not_as_text(older: str, newer: str) -> None:
    assert version.is_newer(newer, than=older)
    assert not version.is_newer(older, than=newer)


def test_missing_and_padded_numbers_make_no_newer_version() -> None:
    for same in itertools.permutations(("1", "1.0", "01.000"), 2):
        assert not version.is_newer(same[0], than=same[1])


@pytest.mark.parametrize(
    "bad",
    [
        "", ".", "1.", ".1", "1..2", "v1", "1.2a", "-1", "+1", " 1", "1 ", "1\n", "1,2", "1_0",
        "\u0661", "\u00b2", "1.2.3.4.5.6.7.8.9", "1234567890", "../1", "1/2", "1" * 100_000,
    ],
)  # fmt: skip
def test_a_version_that_isnt_numbers_and_dots_is_refused(bad: str) -> None:
    with pytest.raises(ManifestError, match=r"doesn't parse; expected numbers separated by dots"):
        version.parse(bad)


@given(numbers)
def test_the_numbers_come_back(parts: list[int]) -> None:
    assert version.parse(text(parts)) == tuple(parts)


@given(numbers, numbers)
def test_one_of_two_versions_is_newer_unless_they_are_the_same(
    left: list[int], right: list[int]
) -> None:
    first, second = text(left), text(right)
    assert (
        version.is_newer(first, than=second)
        + version.is_newer(second, than=first)
        + (not version.is_newer(first, than=second) and not version.is_newer(second, than=first))
    ) == 1


@given(st.text(max_size=12))
def test_any_text_parses_or_is_a_manifest_error(anything: str) -> None:
    try:
        parsed = version.parse(anything)
    except ManifestError:
        return
    assert all(number >= 0 for number in parsed)
