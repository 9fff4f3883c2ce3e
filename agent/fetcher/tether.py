"""The fetcher's side of its link to the Security Server: started, told, restarted.

There is one while this machine is enrolled and the guardian has said what the
machine is; a fetcher on trial is never told, so it has none. What the link says
is passed on to the guardian as it is.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from agent import channel
from agent.channel import Due, ServerNews, Situation, Told, Word
from agent.children import Child, small_environment
from agent.errors import ControlError
from agent.layout import Layout
from agent.loop import Loop, Timer

RESTART_MIN_S = 1.0
RESTART_MAX_S = 300.0
DOUBLINGS_MAX = 16
STEADY_S = 60.0  # a link that lived so long was well
NOT_ENROLLED = 3  # agent.fetcher.link.EXIT_NOT_ENROLLED

_log = structlog.get_logger()


class Tether:
    """See the module."""

    def __init__(
        self, loop: Loop, config_path: Path, places: Layout, *, say: Callable[[Word], None]
    ) -> None:
        self._loop = loop
        self._config_path = config_path
        self._places = places
        self._say = say
        self._situation: Situation | None = None
        self._child: Child | None = None
        self._began = 0.0
        self._failures = 0
        self._timer: Timer | None = None
        self._held = False
        self._released: Callable[[], None] | None = None
        self._news: ServerNews | None = None

    @property
    def pid(self) -> int | None:
        """The link's process id."""
        return self._child.pid if self._child else None

    def tell(self, message: Told) -> None:
        """Pass on what happens here; the link is started with what this machine is."""
        if isinstance(message, Situation):
            self._situation = message
        if self._child:
            self._child.send(channel.encode(message))
        else:
            self._start()

    def _start(self) -> None:
        if self._child or self._timer or self._held or self._situation is None:
            return
        if not self._is_enrolled():
            return
        program = [sys.executable, "-P", "-m", "agent.fetcher.link"]
        self._began = self._loop.clock()
        try:
            self._child = Child(
                self._loop,
                [*program, "--config", str(self._config_path), "--parent", str(os.getpid())],
                name="link",
                on_line=self._hear,
                on_end=self._ended,
                environment=small_environment(os.environ),
                first_input=channel.encode(self._situation),
                own_session=False,
            )
        except OSError as error:
            _log.error("link_not_started", problem=str(error))
            self._restart_later()

    def _is_enrolled(self) -> bool:
        try:
            return self._places.enrolment.exists()
        except OSError as error:  # checks go on without
            _log.error("enrolment_unusable", problem=str(error))
            return False

    def _hear(self, line: bytes) -> None:
        try:
            word = channel.clipped(channel.decode(line, Due | ServerNews))
        except ControlError as error:
            _log.error("link_not_understood", problem=str(error))
            if self._child:
                self._child.kill()
            return
        if isinstance(word, ServerNews):
            self._news = word
        if not self._held:
            self._say(word)

    def _ended(self, status: int) -> None:
        self._child = None
        if self._held:
            released, self._released = self._released, None
            if released:
                released()
            return
        if status == NOT_ENROLLED:
            return
        _log.error("link_ended", status=status)
        if self._news:
            sentence = f"the link ended with status {status}; it is started again"
            self._news = msgspec.structs.replace(
                self._news, connected=False, since=time.time(), code="link_ended", problem=sentence
            )
            self._say(self._news)
        self._restart_later()

    def _restart_later(self) -> None:
        if self._loop.clock() - self._began >= STEADY_S:
            self._failures = 0
        delay = min(RESTART_MIN_S * 2 ** min(self._failures, DOUBLINGS_MAX), RESTART_MAX_S)
        self._failures += 1
        self._timer = self._loop.call_in(delay, self._restart)

    def _restart(self) -> None:
        self._timer = None
        self._start()

    def hold(self, then: Callable[[], None]) -> None:
        """End the link and start none; `then` is called once it is gone."""
        self._held = True
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._child is None:
            then()
            return
        self._released = then
        self._child.kill()

    def let_go(self) -> None:
        """There may be a link again: say how it stands, and start one."""
        self._held = False
        self._failures = 0
        self._news = None
        if not self._is_enrolled():
            self._say(ServerNews(url=""))
        self._start()

    def end(self) -> None:
        """The fetcher ends."""
        self._held = True
        self._released = None
        if self._child:
            self._child.kill()
