"""The memory limit: how many processes, what each is granted, what starts when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from publisher import budget
from publisher.budget import COMMAND_BYTES, MIB, WORKER_BYTES

GIB = 1 << 30


@pytest.mark.parametrize(
    ("limit_mb", "count"),
    [(64, 1), (512, 1), (1024, 2), (2048, 5), (8192, 8)],
)
def test_a_larger_limit_gives_more_processes(limit_mb: int, count: int) -> None:
    assert budget.workers([300 * MIB] * 20, wanted=8, limit=limit_mb * MIB) == count


def test_no_more_processes_than_pieces_or_wanted() -> None:
    assert budget.workers([MIB] * 3, wanted=8, limit=64 * GIB) == 3
    assert budget.workers([MIB] * 30, wanted=2, limit=64 * GIB) == 2
    assert budget.workers([], wanted=2, limit=GIB) == 1


def test_small_pieces_get_processes_although_a_big_one_takes_all() -> None:
    assert budget.workers([4 * GIB, 100 * MIB, 100 * MIB], wanted=2, limit=2 * GIB) == 2


@given(
    needs=st.lists(st.integers(1, 3 * GIB), min_size=1, max_size=30),
    wanted=st.integers(1, 64),
    limit=st.integers(512 * MIB, 16 * GIB),
)
def test_what_runs_never_takes_more_than_the_limit(
    needs: list[int], wanted: int, limit: int
) -> None:
    count = budget.workers(needs, wanted=wanted, limit=limit)
    room = budget.room(limit, count)
    waiting, running, peak = sorted(needs, reverse=True), list[int](), 0
    while waiting or running:
        index = budget.next_to_start(waiting, running, room=room) if waiting else None
        if index is None or len(running) == count:
            running.remove(min(running))
            continue
        running.append(min(waiting.pop(index), room))
        peak = max(peak, sum(running))
    assert peak + COMMAND_BYTES + count * WORKER_BYTES <= limit


def test_the_biggest_starts_first() -> None:
    assert budget.next_to_start([900, 500, 100], [], room=1000) == 0


def test_a_small_piece_starts_beside_a_big_one_that_leaves_it_room() -> None:
    assert budget.next_to_start([900, 100], [900], room=1000) == 1


def test_a_small_piece_does_not_hold_up_a_bigger_one() -> None:
    assert budget.next_to_start([900, 200], [750], room=1000) is None


def test_a_piece_that_wants_more_than_there_is_runs_alone() -> None:
    assert budget.next_to_start([5000, 100], [], room=1000) == 0
    assert budget.next_to_start([100], [1000], room=1000) is None


def test_matching_gets_what_is_left_of_the_grant() -> None:
    need = budget.incremental_need(50 * MIB, 50 * MIB)
    assert budget.matching_limit(need, 50 * MIB, 50 * MIB) == 50 * MIB * 14
    assert budget.matching_limit(0, 50 * MIB, 50 * MIB) == budget.MATCHING_BYTES_MIN


def test_a_few_pieces_share_the_cpus_and_many_have_one_each() -> None:
    assert [budget.threads(pieces, cpus=8) for pieces in (0, 1, 2, 3, 8, 70)] == [4, 4, 4, 2, 1, 1]
    assert budget.threads(1, cpus=1) == 1
    one, four = (budget.incremental_need(MIB, MIB, threads=count) for count in (1, 4))
    assert four == one + 3 * budget.THREAD_BYTES
