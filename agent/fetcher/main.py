"""The fetcher's process: the schedule, the guardian's orders, one worker at a time, a link.

It sleeps between checks. Each check is a worker of its own (agent.fetcher.cycle),
so the memory that metadata and TLS need is given back, and a check that dies
takes neither the schedule nor the guardian's channel with it. Enrolments have
workers of their own, beside a check that may take long. When the guardian goes,
standard input closes and the fetcher ends.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import structlog

from agent import __version__, channel, config, host, layout, log
from agent.channel import (
    Begin,
    Checked,
    CycleFailed,
    Due,
    Enrol,
    EnrolAnswer,
    HandedOver,
    LineBuffer,
    Looked,
    Looking,
    Order,
    Reach,
    Reached,
    Scheduled,
    Situation,
    Word,
)
from agent.children import Child, small_environment
from agent.config import Config
from agent.errors import ControlError
from agent.fetcher import schedule
from agent.fetcher.tether import Tether
from agent.loop import Loop

READ_BYTES = 64 << 10
TRIGGER_START = "start"
TRIGGER_SCHEDULE = "schedule"
TRIGGER_ENROLLED = "enrolled"
ENROL_MAX_S = 120.0  # a server that drips has been given up before

_log = structlog.get_logger()
_random = random.SystemRandom()


class Fetcher:
    """Serves the guardian on standard input and output."""

    def __init__(
        self, settings: Config, config_path: Path, loop: Loop, *, resumed: bool = False
    ) -> None:
        self._resumed = resumed
        self._settings = settings
        self._config_path = config_path
        self._loop = loop
        self._buffer = LineBuffer()
        self._worker: Child | None = None
        self._order: Begin | Reach | None = None
        self._queue: list[Begin | Reach] = []
        self._enrolling: Child | None = None
        self._answer: EnrolAnswer | None = None
        places = layout.resolve(settings, config_path)
        self._tether = Tether(loop, config_path, places, say=lambda word: _say(word))  # noqa: PLW0108

    def start(self) -> None:
        orders = host.own_input(sys.stdin)
        self._loop.on_readable(orders, lambda: self._read_orders(orders))
        check = self._settings.check
        if check.at_start and not self._resumed:
            delay = schedule.delay_at_start(jitter_s=check.jitter_s, draw=_random.random())
            self._loop.call_in(delay, lambda: self._due(TRIGGER_START))
        self._schedule_next()

    def _schedule_next(self) -> None:
        check = self._settings.check
        delay = schedule.delay_to_next(
            interval_s=check.interval_s, jitter_s=check.jitter_s, draw=_random.random()
        )
        self._loop.call_in(delay, self._on_schedule)
        _say(Scheduled(next_check=time.time() + delay, version=__version__))

    def _on_schedule(self) -> None:
        self._schedule_next()
        self._due(TRIGGER_SCHEDULE)

    def _due(self, trigger: str) -> None:
        _say(Due(trigger=trigger))

    def _read_orders(self, orders: host.Pipe) -> None:
        try:
            data = orders.read(READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self.stop()
            return
        for line in self._buffer.feed(data):
            self._obey(channel.decode(line, Order))
        self._next_order()

    def _obey(self, order: Order) -> None:
        if isinstance(order, Situation):
            self._tether.tell(order)
        elif isinstance(order, Enrol):
            self._enrol(order)
        else:
            self._queue.append(order)

    def _next_order(self) -> None:
        if self._worker is not None or not self._queue:
            return
        self._order = self._queue.pop(0)
        if isinstance(self._order, Begin):
            self._tether.tell(Looking())
        self._worker = Child(
            self._loop,
            self._program("agent.fetcher.cycle"),
            name="fetch cycle",
            on_line=self._relay,
            on_end=self._worker_ended,
            environment=small_environment(os.environ),
            first_input=channel.encode(self._order),
            close_input=True,
            own_session=False,
        )

    def _program(self, module: str) -> list[str]:
        program = [sys.executable, "-P", "-m", module]
        return [*program, "--config", str(self._config_path), "--parent", str(os.getpid())]

    def _relay(self, line: bytes) -> None:
        sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()
        with contextlib.suppress(ControlError):  # the guardian will say so
            if isinstance(channel.decode(line, Word), Checked | HandedOver):
                self._tether.tell(Looked())

    def _worker_ended(self, status: int) -> None:
        order, self._order, self._worker = self._order, None, None
        if status and order is not None:
            _log.error("fetch_cycle_died", status=status)
            _say(_answer_for_the_dead(order, status))
        self._next_order()

    def _enrol(self, order: Enrol) -> None:
        """The link and an enrolment never use what is kept of the server at the same time."""
        if self._enrolling or self._answer:
            sentence = "another enrolment is in progress; try again in a minute"
            _say(EnrolAnswer(ok=False, code="busy", sentence=sentence))
            return
        self._answer = EnrolAnswer(
            ok=False, code="enrolment_died", sentence="the enrolment ended without an answer"
        )
        self._tether.hold(lambda: self._begin_enrolment(order))

    def _begin_enrolment(self, order: Enrol) -> None:
        try:
            self._enrolling = Child(
                self._loop,
                self._program("agent.fetcher.enrol"),
                name="enrolment",
                on_line=self._enrolment_said,
                on_end=lambda _status: self._enrolled(order),
                environment=small_environment(os.environ),
                timeout_s=ENROL_MAX_S,
                first_input=channel.encode(order),
                close_input=True,
                own_session=False,
            )
        except OSError as error:
            _log.error("enrolment_not_started", problem=str(error))
            self._enrolled(order)

    def _enrolment_said(self, line: bytes) -> None:
        try:
            self._answer = channel.clipped(channel.decode(line, EnrolAnswer))
        except ControlError as error:
            _log.error("enrolment_not_understood", problem=str(error))

    def _enrolled(self, order: Enrol) -> None:
        answer, self._answer, self._enrolling = self._answer, None, None
        self._tether.let_go()
        if answer is None:
            return
        _log.info("enrolment_ended", action=order.action, ok=answer.ok, code=answer.code)
        _say(answer)
        if answer.ok and order.action == "enrol":
            self._due(TRIGGER_ENROLLED)

    def stop(self) -> None:
        """End, and the workers with it."""
        for child in (self._worker, self._enrolling):
            if child:
                child.kill()
        self._tether.end()
        self._loop.stop()


def _answer_for_the_dead(order: Begin | Reach, status: int) -> CycleFailed | Reached:
    """What is said in place of a worker that ended without its last word."""
    sentence = f"the fetch ended with status {status}; the next check tries again"
    if isinstance(order, Reach):
        return Reached(ok=False, detail=sentence)
    return CycleFailed(attempt=order.attempt, source="", code="fetch_cycle_died", sentence=sentence)


def _say(word: channel.Word) -> None:
    channel.send(sys.stdout.buffer, word)


def main(arguments: list[str] | None = None) -> int:
    """Run until the guardian closes the channel or a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m agent.fetcher", description=__doc__)
    parser.add_argument("--config", type=Path, default=None)
    parser.add_argument(
        "--resumed", action="store_true", help="go on for another fetcher: no check at start"
    )
    given = parser.parse_args(arguments)
    path = given.config or layout.default_path()
    settings = config.load(path)
    log.configure(settings.log_level, program="fetcher")
    loop = Loop()
    fetcher = Fetcher(settings, path, loop, resumed=given.resumed)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.on_signal(number, fetcher.stop)
    try:
        fetcher.start()
        loop.run()
    except BrokenPipeError:
        return 0  # the guardian is gone
    except ControlError as error:
        _log.error("guardian_not_understood", problem=str(error))
        return 1
    finally:
        loop.close()
    return 0
