"""The event loop: what is due is called once, in order, and nothing else is."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.loop import Loop
from tests.support.turns import Clock, settle, until


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loop(clock: Clock) -> Iterator[Loop]:
    made = Loop(clock)
    yield made
    made.close()


@given(st.lists(st.integers(-5, 100), max_size=30))
def test_timers_fire_once_in_the_order_they_are_due(delays: list[int]) -> None:
    clock = Clock()
    loop = Loop(clock)
    fired: list[int] = []
    for number, delay in enumerate(delays):
        loop.call_in(delay, lambda number=number: fired.append(number))  # type: ignore[misc]
    settle(loop, clock, 101, step=7)
    loop.close()
    assert sorted(fired) == list(range(len(delays)))
    due = [max(delays[number], 0) for number in fired]
    assert due == sorted(due)


def test_timers_due_at_the_same_time_fire_in_the_order_they_were_made(
    loop: Loop, clock: Clock
) -> None:
    fired: list[str] = []
    for name in "abc":
        loop.call_in(1, lambda name=name: fired.append(name))  # type: ignore[misc]
    settle(loop, clock, 1)
    assert fired == ["a", "b", "c"]


def test_a_cancelled_timer_never_fires(loop: Loop, clock: Clock) -> None:
    fired: list[str] = []
    timer = loop.call_in(1, lambda: fired.append("cancelled"))
    loop.call_in(2, lambda: fired.append("kept"))
    timer.cancel()
    settle(loop, clock, 3)
    assert fired == ["kept"]


def test_timers_that_are_cancelled_and_made_anew_do_not_add_up(loop: Loop, clock: Clock) -> None:
    """A chatty child moves the end of its time with each word."""
    fired: list[int] = []
    kept = [loop.call_in(200 + n, lambda n=n: fired.append(n)) for n in range(100)]  # type: ignore[misc]
    for _ in range(10_000):
        loop.call_in(180, lambda: fired.append(-1)).cancel()
    assert len(loop._timers) <= 2 * len(kept) + 1
    settle(loop, clock, 300, step=1)
    assert fired == list(range(100))


def test_a_timer_may_cancel_one_that_is_due_with_it(loop: Loop, clock: Clock) -> None:
    fired: list[str] = []
    second = loop.call_in(1, lambda: fired.append("second"))
    loop.call_in(0.5, second.cancel)
    settle(loop, clock, 2, step=2)
    assert fired == []


def test_a_timer_set_by_a_timer_waits_for_its_own_time(loop: Loop, clock: Clock) -> None:
    fired: list[float] = []
    loop.call_in(1, lambda: loop.call_in(1, lambda: fired.append(clock.now)))
    settle(loop, clock, 1)
    assert fired == []
    settle(loop, clock, 1)
    assert fired == [1002.0]


def test_the_loop_sleeps_until_a_descriptor_is_readable() -> None:
    loop = Loop()
    ours, theirs = socket.socketpair()
    heard: list[bytes] = []
    loop.on_readable(ours, lambda: heard.append(ours.recv(10)))
    loop.turn(0.01)
    assert heard == []
    theirs.send(b"word")
    loop.turn(5)
    assert heard == [b"word"]
    loop.forget(ours)
    theirs.send(b"more")
    loop.turn(0.01)
    assert heard == [b"word"]
    loop.forget(ours)  # twice is fine
    for item in (ours, theirs):
        item.close()
    loop.forget(ours)  # closed too
    loop.close()


def test_watching_for_room_to_write_replaces_watching_for_data(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    heard: list[str] = []
    loop.on_readable(ours, lambda: heard.append("read"))
    loop.on_writable(ours, lambda: heard.append("write"))
    theirs.send(b"word")
    loop.turn(1)
    assert heard == ["write"]
    loop.on_readable(ours, lambda: heard.append("read"))
    loop.turn(1)
    assert heard == ["write", "read"]
    ours.close()
    theirs.close()


def test_an_event_isnt_given_to_whoever_got_the_same_descriptor_meanwhile(loop: Loop) -> None:
    """Two descriptors are readable; serving one closes the other and opens a new one there."""
    pairs = [socket.socketpair() for _ in range(2)]
    served: list[str] = []
    opened: list[socket.socket] = []

    def serve(number: int) -> None:
        served.append("old")
        other = pairs[1 - number][0]
        place = other.fileno()
        loop.forget(other)
        other.close()
        fresh, peer = socket.socketpair()
        if fresh.fileno() != place:
            os.dup2(fresh.fileno(), place)
            fresh.close()
            fresh = socket.socket(fileno=place)
        opened.extend((fresh, peer))
        loop.on_readable(fresh, lambda: served.append("new"))

    for number, (ours, theirs) in enumerate(pairs):
        loop.on_readable(ours, lambda number=number: serve(number))  # type: ignore[misc]
        theirs.send(b"x")
    loop.turn(1)
    assert served == ["old"]
    for item in (*opened, *(side for pair in pairs for side in pair)):
        loop.forget(item)
        item.close()


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_signals_are_served_inside_the_loop_and_wake_it() -> None:
    loop = Loop()
    got: list[str] = []
    loop.on_signal(signal.SIGUSR1, lambda: got.append("usr1"))
    loop.on_signal(signal.SIGUSR2, lambda: got.append("usr2"))
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert got == []
    until(loop, lambda: len(got) >= 2, seconds=5)
    assert sorted(set(got)) == ["usr1", "usr2"]
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_run_serves_until_it_is_stopped() -> None:
    loop = Loop()
    began = time.monotonic()
    loop.call_in(0.01, loop.stop)
    loop.run()
    assert time.monotonic() - began < 5
    loop.close()
