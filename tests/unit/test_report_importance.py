"""Which reports are sent first and which go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.fetcher import importance
from agent.fetcher.importance import ORDER, Waiting

reports = st.lists(
    st.builds(
        Waiting,
        attempt=st.uuids().map(str),
        outcome=st.sampled_from([*ORDER, "unheard of"]),
        ended=st.floats(0, 1e9),
        size=st.integers(1, 1000),
    ),
    unique_by=lambda item: item.attempt,
    max_size=40,
)


@given(waiting=reports, count_max=st.integers(0, 40), bytes_max=st.integers(0, 20_000))
def test_what_stays_fits_and_is_no_less_important_than_what_goes(
    waiting: list[Waiting], count_max: int, bytes_max: int
) -> None:
    gone = importance.to_evict(waiting, count_max=count_max, bytes_max=bytes_max)
    kept = [item for item in waiting if item not in gone]
    assert len(kept) <= count_max
    assert sum(item.size for item in kept) <= bytes_max
    for left in gone:
        for item in kept:
            assert (item.importance, item.ended) >= (left.importance, left.ended)


@given(waiting=reports)
def test_nothing_goes_while_there_is_room(waiting: list[Waiting]) -> None:
    assert importance.to_evict(waiting, count_max=40, bytes_max=40_000) == ()


def test_reverts_go_last() -> None:
    waiting = [Waiting(name, name, float(n), 10) for n, name in enumerate(reversed(ORDER))]
    gone = importance.to_evict(waiting, count_max=1, bytes_max=1000)
    assert [item.outcome for item in gone] == ["committed", "failed", "held"]


@given(waiting=reports, bytes_max=st.integers(0, 5000))
def test_a_batch_has_the_most_important_first_and_is_never_empty(
    waiting: list[Waiting], bytes_max: int
) -> None:
    chosen = importance.batch(waiting, count_max=32, bytes_max=bytes_max)
    assert bool(chosen) == bool(waiting)
    assert len(chosen) <= 32
    assert len(chosen) <= 1 or sum(item.size for item in chosen) <= bytes_max
    for item in waiting:
        if item not in chosen and chosen:
            assert item.importance <= chosen[-1].importance
