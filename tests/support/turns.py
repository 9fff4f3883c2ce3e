"""Drive the agent's loop in tests: by real events, or by a clock that tests move."""

from __future__ import annotations

import time
from collections.abc import Callable

from agent.loop import Loop


class Clock:
    """A monotonic clock that stands until it is moved."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def until(loop: Loop, is_so: Callable[[], object], *, seconds: float = 20.0) -> None:
    """Turn `loop` until `is_so`; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"not so within {seconds} s"
        loop.turn(0.02)


def settle(loop: Loop, clock: Clock, seconds: float = 0.0, *, step: float = 0.5) -> None:
    """Let `seconds` of `clock` pass on `loop`, in steps, with whatever is due and readable."""
    end = clock.now + seconds
    loop.turn(0)
    while clock.now < end:
        clock.now = min(clock.now + step, end)
        loop.turn(0)
