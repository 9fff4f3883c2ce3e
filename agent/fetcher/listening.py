"""Hear the server's notifications, in a thread: connect, wait, connect again.

What is heard goes into a queue, in order. Nothing here decides what follows.
However fast a server sends, it is read slowly, so that the queue stays short.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import structlog

from agent.fetcher import pace
from feed.errors import SecurityServerError
from feed.serverclient import ServerClient

_log = structlog.get_logger()
_random = random.SystemRandom()

GAP_S = 0.05  # between two notifications; the rest waits at the server
SAME_S = 1.0  # the same round once more so soon says nothing


class Connected(NamedTuple):
    """Notifications are heard from now on."""


class Lost(NamedTuple):
    """They aren't any more, or not yet. refused: it is the credential."""

    sentence: str
    code: str
    refused: bool


class Heard(NamedTuple):
    """A notification: the newest round."""

    round: int


Event = Connected | Lost | Heard


class Listener:
    """Runs until the process ends."""

    def __init__(
        self,
        client: ServerClient,
        *,
        bearer: Callable[[], str],
        on_event: Callable[[Event], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """bearer and on_event are called in the thread."""
        self._client = client
        self._bearer = bearer
        self._on_event = on_event
        self._failures = 0
        self._clock = clock
        self._sleep = sleep
        self._newest = 0
        self._newest_at = float("-inf")
        self._again = threading.Event()

    def start(self) -> None:
        """Listen from now on."""
        threading.Thread(target=self._listen, name="listener", daemon=True).start()

    def hurry(self) -> None:
        """What kept the connection from being made may be over: don't wait any longer."""
        self._again.set()

    def _listen(self) -> None:
        while True:
            self._again.clear()
            self._again.wait(self._once())

    def _once(self) -> float:
        """Listen until the connection ends; seconds until the next one."""
        began = self._clock()
        try:
            with self._client.notifications(bearer=self._bearer(), after=self._newest) as rounds:
                began = self._clock()
                self._on_event(Connected())
                for number in rounds:
                    self._hear(number)
            lost = SecurityServerError(f"{self._client.url}: the server ended the connection")
        except SecurityServerError as error:
            lost = error
        except Exception as error:  # noqa: BLE001 - nothing else would start this thread again
            _log.exception("listener_failed", server=self._client.url)
            lost = SecurityServerError(
                f"{self._client.url}: sends what can't be heard ({type(error).__name__})",
                code="server_not_understood",
            )
        self._on_event(Lost(str(lost), lost.code, lost.is_refusal))
        if lost.is_refusal:
            return pace.delay_after_refusal(draw=_random.random())
        lasted_s = self._clock() - began
        self._failures = pace.failures_after(self._failures, lasted_s=lasted_s)
        # A server knows how large the crowd is that comes back.
        asked = max(lost.retry_after_s or 0.0, self._client.retry_s)
        return pace.delay_to_retry(self._failures, draw=_random.random(), retry_after_s=asked)

    def _hear(self, number: int) -> None:
        now = self._clock()
        if number != self._newest or now - self._newest_at >= SAME_S:
            self._newest, self._newest_at = number, now
            self._on_event(Heard(number))
        self._sleep(GAP_S)
