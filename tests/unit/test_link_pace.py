"""When the link tries again, checks in and answers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.fetcher import pace

draws = st.floats(0, 1, exclude_max=True)


@given(draw=draws)
def test_a_fleet_comes_back_spread_over_seconds(draw: float) -> None:
    assert pace.delay_to_retry(1, draw=draw) == draw * pace.RECONNECT_FIRST_S


@given(failures=st.integers(2, 10_000), draw=draws)
def test_later_tries_wait_longer_and_never_beyond_the_limit(failures: int, draw: float) -> None:
    delay = pace.delay_to_retry(failures, draw=draw)
    assert 0.5 * pace.RECONNECT_FIRST_S <= delay <= pace.RECONNECT_MAX_S
    assert pace.delay_to_retry(failures + 1, draw=draw) >= delay


@given(failures=st.integers(1, 50), draw=draws, asked=st.floats(0, 1e9))
def test_a_server_that_asks_for_a_pause_gets_it_up_to_a_limit(
    failures: int, draw: float, asked: float
) -> None:
    delay = pace.delay_to_retry(failures, draw=draw, retry_after_s=asked)
    assert delay >= min(asked, pace.RETRY_AFTER_MAX_S)
    assert delay <= pace.RETRY_AFTER_MAX_S * (1 + pace.CHECK_IN_JITTER)


@given(draw=draws)
def test_a_refused_credential_is_shown_slowly(draw: float) -> None:
    assert 300 <= pace.delay_after_refusal(draw=draw) <= 900


@given(asked=st.floats(-1e12, 1e12), draw=draws)
def test_check_ins_come_about_when_the_server_asks(asked: float, draw: float) -> None:
    delay = pace.delay_to_check_in(asked, draw=draw)
    assert 9 <= delay <= 86400 * 1.1
    if 10 <= asked <= 86400:
        assert 0.89 * asked <= delay <= 1.11 * asked


def test_a_connection_that_lasted_makes_failures_start_anew() -> None:
    assert pace.failures_after(7, lasted_s=pace.STEADY_S) == 1
    assert pace.failures_after(7, lasted_s=1) == 8


def test_notifications_are_answered_at_once_and_then_with_a_gap() -> None:
    assert pace.answer_at(100, None) == 100
    assert pace.answer_at(101, 100) == 100 + pace.ANSWER_GAP_S
    assert pace.answer_at(900, 100) == 900
