"""Valid increments of every codec, and ways to spoil them that reach behind their heads."""

from __future__ import annotations

import functools
import random

from feed.delta.format import Codec, varint
from tests.support.deltas import codecs, container, make, rules, table

_NUMBERS = (0, 1, 127, 128, 1 << 20, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63)


@functools.cache
def seeds() -> tuple[tuple[bytes, bytes, bytes], ...]:
    """(base, new, increment): small ones, which together have every codec and every method."""
    text = rules(60)
    fields = table(600, shift=0), table(600, shift=70_000)
    noise = random.Random(1).randbytes(900)
    pairs = [
        (text, text.replace(b"r17", b"seventeen") + noise[:300]),
        fields,
        (fields[0] + noise, noise[100:] + fields[1][40:]),
        (noise, noise),
        (b"", noise[:100]),
        (b"", text[:500]),
    ]
    made = [(base, new, make(base, new)) for base, new in pairs]
    copies = container(noise, noise, [(Codec.COPY, 400, varint(0)), (Codec.COPY, 500, varint(400))])
    found = (*made, (noise, noise, copies))
    assert {codec for *_, patch in found for codec in codecs(patch)} == set(Codec)
    return found


def mutated(patch: bytes, dice: random.Random) -> bytes:
    """The increment with one to four things wrong."""
    spoiled = bytearray(patch)
    for _ in range(dice.randint(1, 4)):
        dice.choice(_WAYS)(spoiled, dice)
    return bytes(spoiled)


def _flip(data: bytearray, dice: random.Random) -> None:
    if data:
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def _set(data: bytearray, dice: random.Random) -> None:
    if data:
        data[dice.randrange(len(data))] = dice.choice((0, 1, 127, 128, 255, dice.randrange(256)))


def _cut(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(data) + 1)
    del data[at : at + dice.choice((1, 2, 8, len(data)))]


def _number(data: bytearray, dice: random.Random) -> None:
    # most numbers are near the start: heads and tables
    at = dice.randrange(min(len(data), dice.choice((40, len(data) or 1))) + 1)
    data[at : at + dice.choice((0, 1, 2))] = varint(dice.choice(_NUMBERS))


def _repeat(data: bytearray, dice: random.Random) -> None:
    at, size = dice.randrange(len(data) + 1), dice.randrange(1, 40)
    data[at:at] = data[at : at + size]


_WAYS = (_flip, _set, _cut, _number, _repeat)
