"""Silence begins when it has lasted longer than it may."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.fleet import presence

TIMES = st.floats(0, 1e10)


@given(TIMES, TIMES, st.floats(1, 1e7))
def test_who_is_silent_has_been_since_before_now(
    seen_at: float, now: float, silent_after_s: float
) -> None:
    since = presence.silent_since(seen_at=seen_at, now=now, silent_after_s=silent_after_s)
    silent = presence.is_silent(seen_at=seen_at, now=now, silent_after_s=silent_after_s)
    assert silent == (since is not None)
    if since is not None:
        assert seen_at <= since <= now + 1e-5


def test_an_agent_that_was_seen_just_now_is_not_silent() -> None:
    assert not presence.is_silent(seen_at=100.0, now=100.0, silent_after_s=60.0)
    assert not presence.is_silent(seen_at=100.0, now=160.0, silent_after_s=60.0)
    assert presence.is_silent(seen_at=100.0, now=160.1, silent_after_s=60.0)
    assert presence.silent_since(seen_at=100.0, now=999.0, silent_after_s=60.0) == 160.0


def test_a_clock_that_was_set_back_makes_nobody_silent() -> None:
    assert not presence.is_silent(seen_at=1000.0, now=10.0, silent_after_s=60.0)
