"""The agent's event loop: descriptors, timers, children and signals; one thread.

It sleeps until something happens: no timer, no wake-up. asyncio would do the
same for 9 MB more of resident memory (docs/adr/0003).
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import selectors
import time
from collections.abc import Callable
from typing import Any

from agent import host

Callback = Callable[[], object]

TIMERS_MIN = 64  # fewer aren't worth sorting the cancelled ones out


class Timer:
    """A callback that is due at a monotonic time, until it is cancelled."""

    def __init__(self, due: float, callback: Callback) -> None:
        self.due = due
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    """See the module. Times are time.monotonic() seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._timers_max = TIMERS_MIN  # until the cancelled ones are dropped
        self._order = itertools.count()
        self._stopped = False
        self._signals: dict[int, Callback] = {}
        self._wake = host.Wake()
        self.on_readable(self._wake, self._deliver_signals)

    def on_readable(self, source: Any, callback: Callback) -> None:
        """Call back whenever `source` (a descriptor or socket) can be read."""
        self._register(source, selectors.EVENT_READ, callback)

    def on_writable(self, source: Any, callback: Callback) -> None:
        """Call back whenever `source` can be written, instead of read."""
        self._register(source, selectors.EVENT_WRITE, callback)

    def _register(self, source: Any, events: int, callback: Callback) -> None:
        try:
            self._selector.modify(source, events, callback)
        except KeyError:
            self._selector.register(source, events, callback)

    def forget(self, source: Any) -> None:
        """Stop watching `source`; unknown is fine."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(source)

    def call_in(self, seconds: float, callback: Callback) -> Timer:
        """Call back once, `seconds` from now."""
        if len(self._timers) >= self._timers_max:
            self._drop_cancelled()
        timer = Timer(self.clock() + max(seconds, 0.0), callback)
        heapq.heappush(self._timers, (timer.due, next(self._order), timer))
        return timer

    def _drop_cancelled(self) -> None:
        """A timer that is cancelled long before it is due must not be kept until then."""
        self._timers = [item for item in self._timers if item[2].callback]
        heapq.heapify(self._timers)
        self._timers_max = max(2 * len(self._timers), TIMERS_MIN)

    def on_signal(self, number: int, callback: Callback) -> None:
        """Call back, inside the loop, when the process gets signal `number`."""
        self._signals[number] = callback
        self._wake.route(number)

    def _deliver_signals(self) -> None:
        for number in self._wake.take():
            callback = self._signals.get(number)
            if callback:
                callback()

    def run(self) -> None:
        """Serve until stop() is called."""
        while not self._stopped:
            self.turn()

    def turn(self, longest: float | None = None) -> None:
        """Wait for the next events, at most `longest` seconds, and serve them."""
        for key, _ in self._selector.select(self._patience(longest)):
            # An earlier callback may have closed this descriptor and opened another in its place.
            if self._selector.get_map().get(key.fd) is key:
                key.data()
        self._fire_timers()

    def _patience(self, longest: float | None) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return longest
        due = max(self._timers[0][0] - self.clock(), 0.0)
        return due if longest is None else min(due, longest)

    def _fire_timers(self) -> None:
        now = self.clock()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            callback, timer.callback = timer.callback, None
            if callback:
                callback()

    def stop(self) -> None:
        """Leave run() after this turn."""
        self._stopped = True

    def close(self) -> None:
        """Give the descriptors back."""
        self._selector.close()
        self._wake.close()
