"""The guardian's side of the fetcher: started, listened to, restarted, never believed.

A fetcher that dies is started again, later each time; one that says nothing
at its start, or while it has work, is killed. Protection doesn't depend on either.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import structlog

from agent import channel
from agent.channel import (
    Begin,
    Checked,
    CycleFailed,
    Enrol,
    EnrolAnswer,
    HandedOver,
    Reach,
    Reached,
    Scheduled,
    ServerNews,
    Situation,
    Word,
)
from agent.errors import ControlError
from agent.guardian.programs import OWN, Program
from agent.guardian.starter import ABSENCE_MAX_S, ABSENT, Running, Starter
from agent.loop import Loop, Timer

RESTART_MIN_S = 1.0
RESTART_MAX_S = 300.0
DOUBLINGS_MAX = 16  # well past RESTART_MAX_S; without it the power outgrows a float
SILENCE_MAX_S = 180.0  # with work to do; the transport gives up on a dead source long before
ORDERLY_S = 1.0  # its service is stopped before the guardian's, at an orderly stop of both
_LAST_WORDS = (Checked, HandedOver, CycleFailed, Reached, EnrolAnswer)

_log = structlog.get_logger()


class FetcherLink:
    """Keeps one fetcher running; on_word gets what it says, on_lost that it went."""

    def __init__(
        self,
        loop: Loop,
        config_path: Path,
        *,
        starter: Starter,
        on_word: Callable[[Word], None],
        on_lost: Callable[[str], None],
        silence_max_s: float = SILENCE_MAX_S,
    ) -> None:
        self._loop = loop
        self._config_path = config_path
        self.program = OWN
        self._command = self.program.command("agent.fetcher", config_path)
        self._more: tuple[str, ...] = ()
        self._starter = starter
        self._on_word = on_word
        self._on_lost = on_lost
        self._silence_max_s = silence_max_s
        self._child: Running | None = None
        self._leaving: dict[int, Running] = {}  # replaced ones that haven't gone yet
        self._silence: Timer | None = None
        self._orders = 0  # that haven't had their last word
        self._failures = 0
        self.deaths = 0  # in a row, without any work done
        self._turn = 0  # tells the words of a replaced fetcher from those of this one
        self._stopping = False
        self.next_check: float | None = None
        self.version = ""  # by its own word

    @property
    def pid(self) -> int | None:
        """The running fetcher's process id."""
        return self._child.pid if self._child else None

    def use(self, program: Program) -> bool:
        """Run another copy of the program from now on; one that runs is replaced at once.

        True: it was at work, which is lost.
        """
        if program == self.program:
            return False
        _log.info("fetcher_replaced", slot=program.slot, version=program.version)
        self.program = program
        self._command = program.command("agent.fetcher", self._config_path)
        self._failures = self.deaths = 0
        child, self._child = self._child, None
        orders, self._orders = self._orders, 0
        self._expect_silence()
        self.version = ""
        if child:
            self._leaving[self._turn] = child
            child.kill()
        if self._turn:
            self._more = ("--resumed",)
            self.start()
        return orders > 0

    def start(self) -> None:
        """Start the fetcher; a start that fails is tried again like an end."""
        if self._stopping or self._child:
            return
        try:
            self._turn += 1
            self._child = self._starter.start(
                [*self._command, *self._more],
                name="fetcher",
                variables=self.program.variables,
                on_line=functools.partial(self._heard, self._turn),
                on_end=functools.partial(self._gone, self._turn),
            )
            self._more = ()
            self._expect_words()  # a sign of life
        except OSError as error:
            _log.error("fetcher_not_started", problem=str(error))
            self._restart_later()
            self._on_lost(f"the fetcher can't be started ({error}); it is tried again")

    def tell(self, situation: Situation) -> bool:
        """Tell the fetcher what expects no answer; False when there is no fetcher."""
        if self._child is None:
            return False
        self._child.send(channel.encode(situation))
        return True

    def order(self, order: Begin | Reach | Enrol) -> bool:
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

    def _heard(self, turn: int, line: bytes) -> None:
        if turn == self._turn:
            self._hear(line)

    def _gone(self, turn: int, status: int) -> None:
        self._leaving.pop(turn, None)
        if turn == self._turn:
            self._ended(status)

    def _hear(self, line: bytes) -> None:
        try:
            word: Word = channel.clipped(channel.decode(line, Word))
        except ControlError as error:
            _log.error("fetcher_not_understood", problem=str(error))
            if self._child:
                self._child.kill()
            return
        if self._silence and not isinstance(word, ServerNews):  # no sign of work
            self._expect_words()
        if isinstance(word, _LAST_WORDS):
            # Only work done counts: a fetcher may greet and die each time.
            self._failures = 0
            died = isinstance(word, CycleFailed) and word.code == "fetch_cycle_died"
            self.deaths = self.deaths + 1 if died else 0
            self._order_done()
        if isinstance(word, Scheduled):
            if not self._orders:
                self._expect_silence()
            self.next_check = word.next_check
            self.version = word.version
        self._on_word(word)

    def _ended(self, status: int) -> None:
        self._child = None
        self._orders = 0
        self._expect_silence()
        if self._stopping:
            return
        if status != ABSENT:
            self.deaths += 1
        if status == 0:
            self._loop.call_in(ORDERLY_S, functools.partial(self._tell_end, status))
        else:
            self._tell_end(status)
        self._restart_later()
        self._on_lost(
            f"no fetcher has connected for {ABSENCE_MAX_S:g} s; "
            "systemctl status holdfast-fetcher.service says why"
            if status == ABSENT
            else f"the fetcher ended with status {status}; it is started again"
        )

    def _tell_end(self, status: int) -> None:
        if not self._stopping:
            _log.error("fetcher_ended", status=status)

    def _restart_later(self) -> None:
        delay = min(RESTART_MIN_S * 2 ** min(self._failures, DOUBLINGS_MAX), RESTART_MAX_S)
        self._failures += 1
        self._loop.call_in(delay, self.start)

    def stop(self) -> None:
        """End the fetcher and wait for it."""
        self._stopping = True
        self._expect_silence()
        for replaced in self._leaving.values():
            replaced.wait(3.0)
        if child := self._child:  # a visitor has ended once it was told to
            child.terminate()
            child.wait(3.0)
        self._starter.close()
