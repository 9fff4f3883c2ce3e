"""How component versions compare.

A version is digits separated by dots: pattern numbers (173), pattern releases
as roll.pattern.build (17.591.00), engine versions (22.600.1004). They compare
as tuples of integers, so 2.998.00 < 3.100.00 and 173 < 175.

Pure.
"""

from __future__ import annotations

import re

from feed.errors import ManifestError

PARTS_MAX = 8
DIGITS_MAX = 9
_FORM = re.compile(rf"[0-9]{{1,{DIGITS_MAX}}}(\.[0-9]{{1,{DIGITS_MAX}}}){{0,{PARTS_MAX - 1}}}")


def parse(text: str) -> tuple[int, ...]:
    """The integers of `text`, most significant first.

    Raises ManifestError: not 1 to 8 groups of 1 to 9 digits separated by dots.
    """
    if not _FORM.fullmatch(text):
        raise ManifestError(
            f"version {text!r} doesn't parse; expected numbers separated by dots, such as 173 "
            f"or 17.591.00 (at most {PARTS_MAX} numbers of {DIGITS_MAX} digits)"
        )
    return tuple(int(part) for part in text.split("."))


def is_newer(candidate: str, *, than: str) -> bool:
    """Whether `candidate` is a later version than `than`.

    1.0 and 1.0.0 are the same version: missing numbers count as zero.
    """
    return _padded(candidate) > _padded(than)


def _padded(text: str) -> tuple[int, ...]:
    numbers = parse(text)
    return numbers + (0,) * (PARTS_MAX - len(numbers))
