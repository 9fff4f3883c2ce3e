"""When agents are told: evenly, each at its own moment, again and not for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.notify import spread
from server.notify.spread import Queue, Standing
from server.settings import Policy

POLICY = Policy(notify_per_s=50.0, notify_window_max_s=900.0)


def test_the_window_grows_with_the_fleet_up_to_the_longest() -> None:
    assert spread.window_s(0, POLICY) == 0
    assert spread.window_s(1_000, POLICY) == 20.0
    assert spread.window_s(1_000_000, POLICY) == 900.0


def test_each_tenth_of_a_window_has_its_tenth_of_the_agents() -> None:
    moments = [
        spread.moment(f"{number:032x}", number=7, created_at=1000.0, window_s=100.0)
        for number in range(10_000)
    ]
    tenths = [sum(int((at - 1000.0) // 10) == tenth for at in moments) for tenth in range(10)]
    assert sum(tenths) == 10_000
    assert min(tenths) > 900
    assert max(tenths) < 1100


def test_an_agents_moment_is_the_same_after_a_restart_and_another_in_the_next_round() -> None:
    first = spread.moment("a", number=1, created_at=0.0, window_s=100.0)
    assert first == spread.moment("a", number=1, created_at=0.0, window_s=100.0)
    assert first != spread.moment("a", number=2, created_at=0.0, window_s=100.0)


def test_who_does_not_answer_is_told_five_times_a_quarter_of_an_hour_apart() -> None:
    told, at = 1, 0.0
    while (due := spread.again(told_times=told, told_at=at, policy=POLICY)) is not None:
        assert due - at == 900.0
        told, at = told + 1, due
    assert told == 5


def test_a_crowd_that_returns_is_told_in_turn_and_a_single_one_at_once() -> None:
    queue, first = Queue().take(now=100.0, policy=POLICY)
    assert first == 100.0
    turns = [first]
    for _ in range(99):
        queue, turn = queue.take(now=100.0, policy=POLICY)
        turns.append(turn)
    assert turns == sorted(turns)
    assert abs(turns[-1] - 100.0 - 99 / 50) < 1e-6
    assert queue.take(now=500.0, policy=POLICY)[1] == 500.0


def test_no_turn_of_a_crowd_is_past_the_longest_window() -> None:
    queue, policy = Queue(), Policy(notify_per_s=1.0, notify_window_max_s=10.0)
    for _ in range(100):
        queue, turn = queue.take(now=0.0, policy=policy)
        assert turn <= 10.0


def on_return(standing: Standing, *, heard: int = 0, own: float = 0.0) -> float | None:
    return spread.on_return(
        standing, number=3, heard=heard, own_moment=own, now=1000.0, policy=POLICY
    )


def test_who_has_answered_is_not_told_on_return() -> None:
    assert on_return(Standing(answered_round=3)) is None


def test_who_was_offline_is_told_on_return() -> None:
    assert on_return(Standing(answered_round=2, told_round=2, told_times=5, told_at=1.0)) == 1000.0


def test_who_returns_within_the_window_keeps_the_own_moment() -> None:
    assert on_return(Standing(), own=1200.0) == 1200.0


def test_who_has_heard_the_round_waits_for_its_repeat() -> None:
    told = Standing(told_round=3, told_times=1, told_at=500.0)
    assert on_return(told, heard=3) == 1400.0
    assert on_return(told, heard=2) == 1000.0
    assert on_return(told, heard=500) == 1000.0  # a round of before a backup was restored


def test_who_was_told_often_enough_and_has_heard_it_is_left_alone() -> None:
    told = Standing(told_round=3, told_times=5, told_at=900.0)
    assert on_return(told, heard=3) is None


@given(st.text(), st.integers(0, 1_000_000))
def test_reconnecting_takes_a_second_to_a_minute(agent: str, agents: int) -> None:
    seconds = spread.reconnect_s(agent, agents=agents, policy=POLICY)
    assert spread.RECONNECT_LEAST_S <= seconds <= spread.RECONNECT_MOST_S
