"""Add the differences of a covers segment to the bytes of its covers.

A difference is a little-endian number, added modulo its width at its place.
They don't overlap, so those of one width are added together, in a loop that
does nothing else: an executable has one every twenty bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, compress
from struct import Struct

from feed.delta.numbers import batches
from feed.delta.streams import Unpacking
from feed.errors import RebuildError

WIDTHS = (1, 2, 3, 4, 0)  # whose values have a stream of their own; 0: all others
# A piece is cut at most this much before its end, to keep a difference whole.
CHANGE_BYTES_MAX = 16 << 10

_OTHER = 5  # any width that is in no stream of its own
_IS = [bytes(value == width for value in range(256)) for width in range(_OTHER + 1)]
_KINDS = bytes(min(width, _OTHER) for width in range(256))
_WORD = Struct("<I")
_PADDING = b"\0" * _WORD.size  # so that a word can be read wherever a number starts


class Differences:
    """The differences of a segment, read as far as the pieces they are added to."""

    def __init__(self, places: Unpacking, values: Sequence[Unpacking]) -> None:
        self._pairs = _pairs(places)
        self._values = dict(zip(WIDTHS, values, strict=True))
        self._pending: Sequence[int] = ()  # bytes between and width, for each that is to come
        self._end = 0  # of the last one that was added, in the segment

    def add(self, piece: bytearray, start: int) -> bytes:
        """Add to `piece`, which begins at `start` of the segment, what lies in it.

        A difference that doesn't end in the piece is left to the next one: all
        from where it begins is cut off the piece and returned.

        Raises RebuildError: places or values are malformed.
        """
        end = len(piece)
        piece += _PADDING
        while self._more():
            bounds = list(accumulate(self._pending, initial=self._end - start))
            count = bisect_right(bounds[2::2], end)
            if count:
                self._add(piece, bounds[1 : 2 * count : 2], self._pending[1 : 2 * count : 2])
                self._end = bounds[2 * count] + start
                self._pending = self._pending[2 * count :]
            if self._pending:
                end = min(bounds[2 * count + 1], end)
                break
        rest = bytes(piece[end : -len(_PADDING)])
        del piece[end:]
        return rest

    def finish(self) -> None:
        """Raises RebuildError: some lie past the segment."""
        if self._more():
            raise RebuildError("a difference lies past its segment")

    def _more(self) -> bool:
        """Whether there is one more; it is pending then."""
        if not self._pending:
            self._pending = next(self._pairs, ())
        return bool(self._pending)

    def _add(self, piece: bytearray, places: Sequence[int], widths: Sequence[int]) -> None:
        """Add the next values at these places of the piece."""
        short = max(widths) < len(_KINDS)
        kinds = bytes(widths if short else [min(_OTHER, width) for width in widths])
        kinds = kinds.translate(_KINDS)
        for width, add in _ADDERS.items():
            if count := kinds.count(width):
                data = self._values[width].read(width * count)
                add(piece, compress(places, kinds.translate(_IS[width])), data)
        if _OTHER in kinds:
            others = kinds.translate(_IS[_OTHER])
            for place, width in zip(
                compress(places, others), compress(widths, others), strict=True
            ):
                _add_long(piece, place, self._values[0].read(width))


def _pairs(places: Unpacking) -> Iterator[list[int]]:
    """The stream of places in batches of whole pairs, with widths as they may be."""
    rest: list[int] = []
    for batch in batches(places):
        pairs = [*rest, *batch]
        whole = len(pairs) // 2 * 2
        pairs, rest = pairs[:whole], pairs[whole:]
        widths = pairs[1::2]
        if not widths:
            continue
        if not 0 < min(widths) <= max(widths) <= CHANGE_BYTES_MAX:
            raise RebuildError(f"differences of {min(widths):,} to {max(widths):,} bytes")
        yield pairs
    if rest:
        raise RebuildError("a difference has a place and no width")


def _add_one(piece: bytearray, places: Iterable[int], values: bytes) -> None:
    for place, value in zip(places, values, strict=True):
        piece[place] = piece[place] + value & 0xFF


def _add_two(piece: bytearray, places: Iterable[int], values: bytes) -> None:
    for place, low, high in zip(places, values[::2], values[1::2], strict=True):
        low += piece[place]  # noqa: PLW2901 - a name and a step less
        if low > 0xFF:
            piece[place] = low - 0x100
            piece[place + 1] = piece[place + 1] + high + 1 & 0xFF
        else:
            piece[place] = low
            piece[place + 1] = piece[place + 1] + high & 0xFF


def _add_three(piece: bytearray, places: Iterable[int], values: bytes) -> None:
    words = bytearray(len(values) // 3 * _WORD.size)
    for byte in range(3):
        words[byte :: _WORD.size] = values[byte::3]
    there, put = _WORD.unpack_from, _WORD.pack_into
    for place, (value,) in zip(places, _WORD.iter_unpack(words), strict=True):
        (word,) = there(piece, place)
        put(piece, place, word & 0xFF000000 | word + value & 0xFFFFFF)


def _add_four(piece: bytearray, places: Iterable[int], values: bytes) -> None:
    there, put = _WORD.unpack_from, _WORD.pack_into
    for place, (value,) in zip(places, _WORD.iter_unpack(values), strict=True):
        put(piece, place, there(piece, place)[0] + value & 0xFFFFFFFF)


def _add_long(piece: bytearray, place: int, value: bytes) -> None:
    size = len(value)
    there = int.from_bytes(piece[place : place + size], "little")
    total = there + int.from_bytes(value, "little")
    piece[place : place + size] = (total & (1 << 8 * size) - 1).to_bytes(size, "little")


_ADDERS: dict[int, Callable[[bytearray, Iterable[int], bytes], None]] = {
    1: _add_one,
    2: _add_two,
    3: _add_three,
    4: _add_four,
}
