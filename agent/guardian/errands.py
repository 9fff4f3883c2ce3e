"""Put the same questions to the program on trial and, where it fails, to the prior one.

Each question is a process of its own, ended when it has answered: a stager that
says who it is, and a fetcher that looks for updates and takes none. What the
answers mean is comparison's to say.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import structlog

from agent import channel
from agent.channel import (
    PROTOCOL,
    Begin,
    Checked,
    CycleFailed,
    Greet,
    Greeting,
    Result,
    Word,
)
from agent.children import Child
from agent.errors import ControlError
from agent.guardian import comparison
from agent.guardian.comparison import Answer, Reply
from agent.guardian.programs import Program
from agent.guardian.samples import ProgramSample
from agent.guardian.starter import ABSENT, Running, Starter
from agent.loop import Loop, Timer

RETRY_S = 2.0  # after a question that wasn't answered well
AGAIN_S = 60.0  # after all were: it may stop working later in the trial
LOOK_MAX_S = 180.0  # as fetching.SILENCE_MAX_S: a dead source is given up long before
QUESTIONS = ("stager", "fetcher")

_log = structlog.get_logger()

Done = Callable[[Reply], None]


class Errands:
    """Asks as long as a trial lasts; `samples` is what is known."""

    def __init__(
        self,
        loop: Loop,
        config_path: Path,
        *,
        starter: Starter,
        answer_s: float,
        look: Callable[[], Begin],
    ) -> None:
        self._loop = loop
        self._config_path = config_path
        self._starter = starter
        self._answer_s = answer_s
        self._look = look
        self._pair: tuple[Program, Program] | None = None
        self._known: dict[str, ProgramSample] = {}
        self._running: _Errand | None = None
        self._timer: Timer | None = None

    @property
    def samples(self) -> tuple[ProgramSample, ...]:
        """One for each question; empty when no program is on trial."""
        return tuple(self._known.values())

    def begin(self, new: Program, prior: Program) -> None:
        """Ask about `new` from now on; goes on where it is when it does already."""
        if self._pair == (new, prior):
            return
        self.end()
        self._pair = (new, prior)
        self._known = {
            name: ProgramSample(question=name, version=new.version) for name in QUESTIONS
        }
        self._round(0)

    def end(self) -> None:
        """Ask no more."""
        self._pair = None
        self._known = {}
        if self._timer:
            self._timer.cancel()
        if self._running:
            self._running.cancel()
        self._timer = self._running = None

    def _round(self, number: int) -> None:
        """Question `number`, and the next ones after it."""
        if self._pair is None:
            return
        if number == len(QUESTIONS):
            proven = all(item.proven for item in self._known.values())
            self._timer = self._loop.call_in(AGAIN_S if proven else RETRY_S, self._begin_round)
            return
        new, prior = self._pair
        question = QUESTIONS[number]

        def settle(reply: Reply, control: Reply | None) -> None:
            self._note(question, reply, control)
            self._round(number + 1)

        def answered(reply: Reply) -> None:
            if comparison.wants_control(reply):
                self._ask(question, prior, lambda control: settle(reply, control))
            else:
                settle(reply, None)

        self._ask(question, new, answered)

    def _begin_round(self) -> None:
        self._round(0)

    def _note(self, question: str, reply: Reply, control: Reply | None) -> None:
        found = comparison.after(self._known[question], reply, control)
        self._known[question] = found
        if not found.proven:
            _log.warning(
                "program_failed",
                question=question,
                answer=reply.answer,
                detail=reply.detail,
                prior=control.answer if control else "",
                losses=found.losses,
            )

    def _ask(self, question: str, program: Program, done: Done) -> None:
        pair = self._pair

        def wanted(reply: Reply) -> None:
            if self._pair is pair:  # the trial may end between an answer and its turn
                done(reply)

        kind = _StagerErrand if question == "stager" else _FetcherErrand
        errand = kind(self._loop, self._answer_s, wanted)
        self._running = errand
        try:
            if isinstance(errand, _FetcherErrand):
                errand.start(program, self._config_path, self._starter, self._look())
            else:
                errand.start(program, self._config_path)
        except OSError as error:
            errand.finish(Reply(Answer.NOT_ASKED, str(error)))


class _Errand:
    """One process with one question; `done` gets its reply, once, from the loop."""

    def __init__(self, loop: Loop, answer_s: float, done: Done) -> None:
        self._loop = loop
        self._answer_s = answer_s
        self._done: Done | None = done
        self._child: Running | None = None
        self._timer: Timer | None = None

    def finish(self, reply: Reply) -> None:
        """End the process; what it does from here on doesn't count."""
        done, self._done = self._done, None
        self.cancel()
        if done:
            self._loop.call_in(0, lambda: done(reply))

    def cancel(self) -> None:
        """The same, without a reply."""
        self._done = None
        if self._timer:
            self._timer.cancel()
        if self._child:
            self._child.kill()

    def _expect(self, seconds: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_in(
            seconds,
            lambda: self.finish(Reply(Answer.SILENT, f"said nothing for {seconds:g} s")),
        )

    def _ended(self, status: int) -> None:
        self.finish(Reply(Answer.ENDED, f"ended with status {status} before it answered"))


class _StagerErrand(_Errand):
    def start(self, program: Program, config_path: Path) -> None:
        """Raises OSError: it can't be started."""
        parent = ("--parent", str(os.getpid()))
        self._child = Child(
            self._loop,
            program.command("agent.stager", config_path, *parent),
            name="stager on trial",
            on_line=self._hear,
            on_end=self._ended,
            environment=program.environment(os.environ),
            first_input=channel.encode(Greet()),
            close_input=True,
        )
        self._expect(self._answer_s)

    def _hear(self, line: bytes) -> None:
        try:
            said = channel.decode(line, Result)
        except ControlError as error:
            self.finish(Reply(Answer.ENDED, f"isn't understood: {error}"))
            return
        if isinstance(said, Greeting) and said.protocol == PROTOCOL:
            self.finish(Reply(Answer.GOOD))
        else:
            self.finish(Reply(Answer.ENDED, f"gave another answer: {type(said).__name__}"))


class _FetcherErrand(_Errand):
    _alive = False

    def start(self, program: Program, config_path: Path, starter: Starter, look: Begin) -> None:
        """Raises OSError: it can't be started."""
        self._child = starter.start(
            program.command("agent.fetcher", config_path, "--resumed"),
            name="fetcher on trial",
            variables=program.variables,
            on_line=self._hear,
            on_end=self._left,
        )
        self._child.send(channel.encode(look))
        self._expect(self._answer_s)

    def _left(self, status: int) -> None:
        if status == ABSENT:  # the fetcher's service isn't there: no fault of the program's
            self.finish(Reply(Answer.NOT_ASKED, "the fetcher's service isn't there"))
        else:
            self._ended(status)

    def _hear(self, line: bytes) -> None:
        try:
            said = channel.clipped(channel.decode(line, Word))
        except ControlError as error:
            self.finish(Reply(Answer.ENDED, f"isn't understood: {error}"))
            return
        if isinstance(said, Checked):
            self.finish(Reply(Answer.GOOD))
        elif isinstance(said, CycleFailed) and said.code == "fetch_cycle_died":
            self.finish(Reply(Answer.ENDED, said.sentence))
        elif isinstance(said, CycleFailed):
            self.finish(Reply(Answer.REFUSED, said.sentence))
        elif not self._alive:
            self._alive = True
            self._expect(LOOK_MAX_S)  # the source may take its time
