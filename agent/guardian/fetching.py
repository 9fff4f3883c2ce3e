"""The guardian's side of the fetcher: started, listened to, restarted, never believed.

A fetcher that dies is started again, later each time; one that says nothing
while it has work is killed. Protection doesn't depend on either.

It is a child, or with a door a service of its own, which comes, is told what
to run, and is started again by the service manager.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import structlog

from agent import channel
from agent.channel import Checked, CycleFailed, HandedOver, Order, Reached, Scheduled, Word
from agent.children import Child, small_environment
from agent.errors import ControlError
from agent.guardian.visitor import Door, Visitor, errand
from agent.host import Peer, User
from agent.loop import Loop, Timer

RESTART_MIN_S = 1.0
RESTART_MAX_S = 300.0
DOUBLINGS_MAX = 16  # well past RESTART_MAX_S; without it the power outgrows a float
ABSENCE_MAX_S = 60.0  # of a fetcher that the service manager starts
SILENCE_MAX_S = 180.0  # with work to do; the transport gives up on a dead source long before
_LAST_WORDS = (Checked, HandedOver, CycleFailed, Reached)

_log = structlog.get_logger()


class FetcherLink:
    """Keeps one fetcher running; on_word gets what it says, on_lost that it went."""

    def __init__(
        self,
        loop: Loop,
        config_path: Path,
        *,
        user: User | None,
        on_word: Callable[[Word], None],
        on_lost: Callable[[str], None],
        silence_max_s: float = SILENCE_MAX_S,
        door: Door | None = None,
    ) -> None:
        self._loop = loop
        self._command = [sys.executable, "-P", "-m", "agent.fetcher", "--config", str(config_path)]
        self._extra: dict[str, str] = {}  # of the environment of a fetcher that comes
        self._user = user
        self._on_word = on_word
        self._on_lost = on_lost
        self._silence_max_s = silence_max_s
        self._door = door
        self._child: Child | Visitor | None = None
        self._absence: Timer | None = None
        self._silence: Timer | None = None
        self._orders = 0  # that haven't had their last word
        self._failures = 0
        self._stopping = False
        self.next_check: float | None = None

    @property
    def pid(self) -> int | None:
        """The running fetcher's process id."""
        return self._child.pid if self._child else None

    def start(self) -> None:
        """Start the fetcher, or wait for it; a start that fails is tried again like an end."""
        if self._stopping or self._child:
            return
        try:
            if self._door:
                self._await(self._door)
                return
            self._child = Child(
                self._loop,
                self._command,
                name="fetcher",
                on_line=self._hear,
                on_end=self._ended,
                environment=small_environment(os.environ),
                user=self._user,
            )
        except OSError as error:
            _log.error("fetcher_not_started", problem=str(error))
            self._restart_later()
            self._on_lost(f"the fetcher can't be started ({error}); it is tried again")

    def _await(self, door: Door) -> None:
        """Raises OSError: the socket can't be made."""
        door.on_visit = self._visited
        door.open()
        self._absence = self._absence or self._loop.call_in(ABSENCE_MAX_S, self._missed)

    def _visited(self, connection: socket.socket, peer: Peer) -> None:
        """A fetcher is here. There is one: its predecessor is gone, or should be."""
        if self._child:
            self._child.kill()
        if self._absence:
            self._absence.cancel()
            self._absence = None
        visitor = Visitor(
            self._loop,
            connection,
            peer,
            on_line=self._hear,
            on_end=lambda status: self._left(visitor, status),
        )
        self._child = visitor
        visitor.send(errand(self._command, self._extra))

    def _left(self, visitor: Visitor, status: int) -> None:
        if self._child is visitor:
            self._ended(status)

    def _missed(self) -> None:
        self._absence = None
        if self._child is None and not self._stopping:
            self._on_lost(
                f"no fetcher has connected for {ABSENCE_MAX_S:g} s; "
                "systemctl status holdfast-fetcher.service says why"
            )

    def order(self, order: Order) -> bool:
        """Give the fetcher an order; False when there is no fetcher to take it."""
        if self._child is None:
            return False
        self._child.send(channel.encode(order))
        self._orders += 1
        self._expect_words()
        return True

    def _order_done(self) -> None:
        """Without another order, silence is fine again."""
        self._orders = max(self._orders - 1, 0)
        if not self._orders:
            self._expect_silence()

    def _expect_silence(self) -> None:
        if self._silence:
            self._silence.cancel()
            self._silence = None

    def _expect_words(self) -> None:
        self._expect_silence()
        self._silence = self._loop.call_in(self._silence_max_s, self._too_quiet)

    def _too_quiet(self) -> None:
        _log.error("fetcher_hangs", pid=self.pid, silent_s=self._silence_max_s)
        if self._child:
            self._child.kill()

    def _hear(self, line: bytes) -> None:
        try:
            word: Word = channel.clipped(channel.decode(line, Word))
        except ControlError as error:
            _log.error("fetcher_not_understood", problem=str(error))
            if self._child:
                self._child.kill()
            return
        if self._silence:
            self._expect_words()
        if isinstance(word, _LAST_WORDS):
            self._failures = 0  # only work done counts: a fetcher may greet and die each time
            self._order_done()
        if isinstance(word, Scheduled):
            self.next_check = word.next_check
        self._on_word(word)

    def _ended(self, status: int) -> None:
        self._child = None
        self._orders = 0
        self._expect_silence()
        if self._stopping:
            return
        if self._door:  # its service says why, and starts it again
            _log.warning("fetcher_left", status=status)
            self._loop.call_in(0, self.start)
        else:
            _log.error("fetcher_ended", status=status)
            self._restart_later()
        self._on_lost(f"the fetcher ended with status {status}; it is started again")

    def _restart_later(self) -> None:
        delay = min(RESTART_MIN_S * 2 ** min(self._failures, DOUBLINGS_MAX), RESTART_MAX_S)
        self._failures += 1
        self._loop.call_in(delay, self.start)

    def stop(self) -> None:
        """End the fetcher and wait for it."""
        self._stopping = True
        self._expect_silence()
        if self._door:
            self._door.close()
        if child := self._child:
            child.terminate()
            child.wait(3.0)
