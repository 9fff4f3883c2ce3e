"""Where the new file's bytes are found in the old one."""

from __future__ import annotations

import random

import pytest

from feed.delta import anchors, matching
from feed.delta.match import Cover

LIMIT = 1 << 30


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def explained(covers: list[Cover]) -> int:
    return sum(cover.length for cover in covers)


def is_in_order(covers: list[Cover], *, old_length: int, new_length: int) -> bool:
    done = 0
    for cover in covers:
        if cover.new < done or cover.length < 1 or not 0 <= cover.old <= old_length - cover.length:
            return False
        done = cover.new + cover.length
    return done <= new_length


def test_a_run_goes_on_over_small_differences() -> None:
    old = noise(200_000, 1)
    new = bytearray(old)
    for at in range(500, len(new), 500):
        new[at] ^= 255
    (run,) = anchors.runs(old, bytes(new), memory_limit=LIMIT)
    assert run.old == run.new
    assert run.length > 0.99 * len(new)


def test_a_run_ends_where_much_differs() -> None:
    old = noise(100_000, 2)
    new = old[:50_000] + noise(5_000, 3) + old[50_000:]
    runs = anchors.runs(old, new, memory_limit=LIMIT)
    assert [run.old - run.new for run in runs] == [0, -5_000]
    assert all(old[run.old :][: run.length] == new[run.new :][: run.length] for run in runs)


def test_what_the_long_runs_left_over_is_searched_for_short_ones() -> None:
    pieces = [noise(600, seed) for seed in range(4_000)]
    moved = list(pieces)
    random.Random(4).shuffle(moved)
    found = anchors.runs(b"".join(pieces), b"".join(moved), memory_limit=LIMIT)
    inner = 600 - 2 * anchors._EDGE_BYTES
    assert explained(found) > 0.6 * inner * len(pieces)


def test_bytes_that_stand_in_many_places_are_no_hit() -> None:
    block = noise(4_000, 5)
    old = noise(50_000, 6) + block * 20 + noise(50_000, 7)
    new = noise(51_234, 8) + block + noise(50_000, 9)
    assert anchors.runs(old, new, memory_limit=LIMIT) == []


def test_large_files_lose_nothing_to_what_small_ones_find(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [noise(random.Random(seed).randrange(50, 3_000), seed) for seed in range(400)]
    old = b"".join(pieces)
    new = b"".join(piece for at, piece in enumerate(pieces) if at % 7) + noise(3_000, 10)
    whole = matching.find(old, new, memory_limit=LIMIT)
    monkeypatch.setattr(matching, "_ANCHORS_FROM_BYTES", 0)
    through = matching.find(old, new, memory_limit=LIMIT)
    assert is_in_order(through, old_length=len(old), new_length=len(new))
    assert explained(through) > 0.995 * explained(whole)
    assert len(through) < 1.1 * len(whole)


def test_neighbours_that_moved_alike_become_one() -> None:
    covers = [Cover(100, 0, 50), Cover(160, 60, 40), Cover(300, 100, 10)]
    assert matching._merged(covers) == [Cover(100, 0, 100), Cover(300, 100, 10)]


def test_short_far_covers_go_where_their_bytes_repeat_each_other() -> None:
    new = b"a record like any other, " * 4_000
    far = [Cover(at * 7_919 % 1_000_000, at * 25, 24) for at in range(4_000)]
    assert len(matching._paying(new, far)) <= 1


def test_short_far_covers_stay_where_their_bytes_would_be_told_in_full() -> None:
    new = noise(100_000, 11)
    far = [Cover(at * 7_919 % 1_000_000, at * 25, 24) for at in range(4_000)]
    assert matching._paying(new, far) == far
