"""python -m agent.fetcher.link: this machine's line to its Security Server.

A child of the fetcher, for as long as the machine is enrolled. It hears
notifications and passes them on as checks that are due, checks in, and delivers
reports. Whatever a server sends, it only ever makes the agent look at the signed
feed. Standard input brings what the machine is; its end is this process's.

Two threads wait, for the server and for the fetcher, and put what they hear
into one queue. All else is done here in turn, so nothing is shared.
"""

from __future__ import annotations

import os
import queue
import random
import socket
import sys
import threading
import time
from collections.abc import Callable

import msgspec
import structlog

import agent.fetcher.road  # noqa: F401 - before any other import of httpx; see there
from agent import channel, worker
from agent.channel import Due, Looked, Looking, ServerNews, Situation, Told, Word
from agent.errors import ControlError, EnrolmentError
from agent.fetcher import membership, pace, telling
from agent.fetcher.listening import Connected, Event, Heard, Listener, Lost
from agent.fetcher.session import Session
from agent.fetcher.spool import Spool
from agent.layout import Layout
from feed.errors import SecurityServerError
from feed.messages import (
    CHECK_IN_PATH,
    REPORTS_PATH,
    CheckIn,
    CheckInReply,
    Facts,
    Report,
    Reports,
    ReportsTaken,
)
from feed.serverclient import ServerClient

TRIGGER = "notification"
EXIT_NOT_ENROLLED = 3
CHECK_IN_FIRST_S = 300.0  # until the server says otherwise
POISON = frozenset({400, 413, 422})  # it is this report that isn't taken, and never will be

_log = structlog.get_logger()
_random = random.SystemRandom()

Heardable = Event | Situation | Looking | Looked | None  # None: the fetcher is gone


class Link:
    """See the module. clock is monotonic, wall Unix seconds."""

    def __init__(
        self,
        session: Session,
        spool: Spool,
        *,
        say: Callable[[Word], None],
        hurry: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        draw: Callable[[], float] = _random.random,
    ) -> None:
        self._session = session
        self._spool = spool
        self._say = say
        self._hurry = hurry
        self._clock = clock
        self._wall = wall
        self._draw = draw
        self._situation: Situation | None = None
        self._told: Facts | None = None  # by the last check-in
        self._check_in_s = CHECK_IN_FIRST_S
        self._check_in_at = clock()
        self._report_at = clock()
        self._failures = 0  # of check-ins and reports, in a row
        self._heard_round = 0
        self._looking_after = 0
        self._looked_round = 0
        self._look_due = False  # a round that is another than the last one looked for
        self._answer_at: float | None = None
        self._last_answer: float | None = None
        self._is_deaf = False  # since it was said that notifications aren't heard
        self._is_turned_away = False  # the listener, with what it showed
        self._news = ServerNews(
            url=session.enrolment.url, agent_id=session.enrolment.agent_id, since=wall()
        )
        self._last_news: ServerNews | None = None

    def take(self, item: Heardable) -> None:
        """Something was heard."""
        if isinstance(item, Situation):
            self._be(item)
        elif isinstance(item, Heard):
            self._notified(item.round)
        elif isinstance(item, Looking):
            self._looking_after = self._heard_round
        elif isinstance(item, Looked):
            self._looked_round = self._looking_after
        elif isinstance(item, Connected):
            self._connected()
        elif isinstance(item, Lost):
            self._lost(item)

    def work(self) -> float:
        """Do what is due; seconds until something is again."""
        if self._situation is not None:
            self._answer_if_due()
            self._gather()
            if self._clock() >= self._check_in_at:
                self._check_in(self._situation)
            if self._spool.waiting and self._clock() >= self._report_at:
                self._report()
        self._tell_news()
        return self._patience()

    def _patience(self) -> float:
        due = [self._check_in_at]
        if self._spool.waiting:
            due.append(self._report_at)
        if self._answer_at is not None:
            due.append(self._answer_at)
        return max(min(due) - self._clock(), 0.0) if self._situation else CHECK_IN_FIRST_S

    # What is heard.

    def _be(self, situation: Situation) -> None:
        self._situation = situation
        told = self._told
        is_news = told is None or telling.facts(situation, name=told.name) != told
        if is_news and situation.resting and not self._failures:
            self._check_in_at = self._clock()

    def _notified(self, number: int) -> None:
        if self._answer_at is None:
            self._answer_at = pace.answer_at(self._clock(), self._last_answer)
        # Another number is news, a smaller one too: a server restored from a backup counts on
        # from there.
        self._look_due = self._look_due or number != self._heard_round
        self._heard_round = number

    def _answer_if_due(self) -> None:
        """Another round is a check; each is answered by a check-in."""
        now = self._clock()
        if self._answer_at is None or now < self._answer_at:
            return
        self._answer_at, self._last_answer = None, now
        if self._look_due:
            self._look_due = False
            self._say(Due(trigger=TRIGGER))
        self._check_in_at = min(self._check_in_at, now)

    def _connected(self) -> None:
        self._is_deaf = self._is_turned_away = False
        self._change(connected=True, since=self._wall())
        _log.info("server_connected", server=self._news.url)
        if self._failures:
            self._check_in_at = self._report_at = self._clock()

    def _lost(self, lost: Lost) -> None:
        if self._news.connected:
            self._change(connected=False, since=self._wall())
        if not self._is_deaf:
            self._is_deaf = True
            _log.warning("server_lost", server=self._news.url, problem=lost.sentence)
        if not self._failures:
            self._change(code=lost.code, problem=lost.sentence)
        if lost.refused:
            self._is_turned_away = True
            if not self._failures:
                self._check_in_at = self._clock()  # it may be the new credential alone

    # What is said.

    def _check_in(self, situation: Situation) -> None:
        facts = telling.facts(situation, name=socket.gethostname())
        message = CheckIn(
            facts=facts, heard_round=self._heard_round, looked_round=self._looked_round
        )
        try:
            reply = self._session.ask(CHECK_IN_PATH, message, CheckInReply)
        except (SecurityServerError, OSError) as error:
            self._check_in_at = self._clock() + self._failed(error)
            return
        self._worked()
        self._told = facts
        self._check_in_s = reply.check_in_s
        self._check_in_at = self._clock() + pace.delay_to_check_in(
            reply.check_in_s, draw=self._draw()
        )
        self._change(last_check_in=self._wall())
        if reply.look and reply.round != self._heard_round:
            self._notified(reply.round)
        if reply.rotate:
            self._rotate()

    def _rotate(self) -> None:
        try:
            self._session.rotate()
        except (SecurityServerError, OSError) as error:
            _log.warning("credential_not_rotated", problem=str(error))
        else:
            self._check_in_at = self._clock()  # shown for the first time

    def _report(self) -> None:
        try:
            if reports := self._spool.batch():
                self._deliver(reports)
        except (SecurityServerError, OSError) as error:
            self._report_at = self._clock() + self._failed(error)

    def _deliver(self, reports: tuple[Report, ...]) -> None:
        """Send them; one by one where the server says that something is wrong with them.

        Raises SecurityServerError, also when the server names none of them. OSError.
        """
        dropped = dict(self._spool.dropped)
        message = Reports(reports=reports, dropped=dropped)
        try:
            taken = self._session.ask(REPORTS_PATH, message, ReportsTaken).taken
        except SecurityServerError as error:
            if error.status not in POISON:
                raise
            if len(reports) == 1:
                _log.error("report_refused", attempt=reports[0].attempt, problem=str(error))
                self._spool.give_up(reports[0].attempt)
                return
            for report in reports:
                self._deliver((report,))
            return
        if not {item.attempt for item in reports} & set(taken):
            raise SecurityServerError(
                f"{self._news.url} takes no report", code="server_not_understood"
            )
        self._spool.taken(taken, dropped=dropped)
        self._worked()

    def _gather(self) -> None:
        try:
            self._spool.gather()
        except OSError as error:
            _log.error("report_not_kept", problem=str(error))  # the history still has it
        self._change(
            reports_waiting=self._spool.waiting, reports_dropped=sum(self._spool.dropped.values())
        )

    def _worked(self) -> None:
        if self._failures:
            _log.info("server_answers", server=self._news.url)
        if self._failures or self._is_turned_away:
            self._is_turned_away = False
            self._hurry()
        self._failures = 0
        self._report_at = min(self._report_at, self._clock())
        self._change(code="", problem="")

    def _failed(self, error: SecurityServerError | OSError) -> float:
        """Say it once, show it, and wait longer each time; seconds."""
        code = error.code if isinstance(error, SecurityServerError) else "io_error"
        if not self._failures or code != self._news.code:
            _log.warning("server_fails", server=self._news.url, code=code, problem=str(error))
        self._failures += 1
        self._change(code=code, problem=str(error))
        if isinstance(error, SecurityServerError) and error.is_refusal:
            return pace.delay_after_refusal(draw=self._draw())
        asked = error.retry_after_s if isinstance(error, SecurityServerError) else None
        return pace.delay_to_retry(self._failures, draw=self._draw(), retry_after_s=asked)

    # What the guardian is told.

    def _change(self, **changes: object) -> None:
        self._news = msgspec.structs.replace(self._news, **changes)

    def _tell_news(self) -> None:
        self._change(
            reports_waiting=self._spool.waiting, reports_dropped=sum(self._spool.dropped.values())
        )
        if self._news != self._last_news:
            self._last_news = self._news
            self._say(self._news)


def main(arguments: list[str] | None = None) -> int:
    """Run until standard input ends. 3: this machine isn't enrolled."""
    _, places = worker.begin("agent.fetcher.link", __doc__, arguments, program="link")
    heard: queue.SimpleQueue[Heardable] = queue.SimpleQueue()
    threading.Thread(target=_listen_to_fetcher, args=(heard,), daemon=True).start()
    try:
        return _serve(places, heard)
    except EnrolmentError as error:
        _log.error("enrolment_unusable", problem=str(error))
        _wait_for_end(places, heard, error)
        return 0


def _serve(places: Layout, heard: queue.SimpleQueue[Heardable]) -> int:
    member = membership.load(places)
    if member is None:
        return EXIT_NOT_ENROLLED
    membership.sweep(places)
    try:
        client = ServerClient(member.enrolment.url, authority=member.enrolment.authority)
    except SecurityServerError as error:
        raise EnrolmentError(str(error)) from error
    session = Session(places, member, client)
    listener = Listener(client, bearer=lambda: session.bearer, on_event=heard.put)
    link = Link(session, Spool(places), say=_say, hurry=listener.hurry)
    listener.start()
    while True:
        try:
            item = heard.get(timeout=link.work())
        except queue.Empty:
            continue
        if item is None:
            return 0
        link.take(item)


def _wait_for_end(
    places: Layout, heard: queue.SimpleQueue[Heardable], error: EnrolmentError
) -> None:
    """Nothing can be done until somebody enrols again: say so and stay out of the way."""
    _say(
        ServerNews(
            url=str(places.enrolment), since=time.time(), code=error.code, problem=str(error)
        )
    )
    while heard.get() is not None:
        pass


def _listen_to_fetcher(heard: queue.SimpleQueue[Heardable]) -> None:
    try:
        for line in sys.stdin.buffer:
            heard.put(channel.decode(line, Told))
    except ControlError as error:
        _log.error("fetcher_not_understood", problem=str(error))
    heard.put(None)
    time.sleep(1.0)
    os._exit(0)  # the main thread waits for the server


def _say(word: Word) -> None:
    try:
        channel.send(sys.stdout.buffer, word)
    except BrokenPipeError:
        os._exit(0)  # the fetcher is gone


if __name__ == "__main__":
    worker.end(main)
