"""The guardian's part in what concerns the Security Server: tells, relays, shows.

It tells the fetcher what this machine is, so that the server can be told; it
passes an administrator's enrolment on to the fetcher, and keeps the answer until
it is asked for; it shows what the fetcher says about the server. It parses no
byte of a server's, keeps no token, and decides nothing by any of it.
"""

from __future__ import annotations

import sys
from typing import Any, Literal, cast

import msgspec
import structlog

from agent import __version__
from agent.channel import Enrol, EnrolAnswer, ServerNews, Situation
from agent.errors import ControlError
from agent.guardian import lifecycle
from agent.guardian.fetching import FetcherLink
from agent.guardian.ledger import Ledger
from agent.guardian.lifecycle import State

ACTIONS = ("enrol", "forget", "rotate")

_log = structlog.get_logger()


class Liaison:
    """See the module."""

    def __init__(self, ledger: Ledger, fetcher: FetcherLink) -> None:
        self._ledger = ledger
        self._fetcher = fetcher
        self._told: Situation | None = None
        self._due = False
        self._news: ServerNews | None = None
        self._ticket = 0
        self._answer: EnrolAnswer | None = None
        self._asked = False
        ledger.on_change = self.tell_soon

    # What this machine is.

    def tell_soon(self) -> None:
        """Something changed: tell the fetcher once this turn's work is done."""
        if not self._due:
            self._due = True
            self._ledger.loop.call_in(0, self._tell)

    def tell_anew(self) -> None:
        """The fetcher may be another one: it is told whatever the last one was told."""
        self._told = None
        self.tell_soon()

    def _tell(self) -> None:
        self._due = False
        state = self._ledger.status.state
        is_passing = not lifecycle.is_resting(state) and state is not State.TRIAL
        if is_passing and self._told is not None:
            return  # a check without news isn't worth a wake-up
        now = self.situation()
        if now != self._told and self._fetcher.tell(now):
            self._told = now

    def situation(self) -> Situation:
        """What the server is told of this machine."""
        ledger = self._ledger
        seal = ledger.active_seal
        return Situation(
            host_id=ledger.host_id,
            region=ledger.config.region,
            platform=sys.platform,
            agent_version=__version__,
            traits=ledger.config.traits,
            active_release=ledger.record.content.release if ledger.record.content else None,
            components={item.name: item.version for item in seal.components} if seal else {},
            state=ledger.status.state,
            reason=ledger.status.reason,
            resting=lifecycle.is_resting(ledger.status.state),
            last_attempt=ledger.last_attempt,
        )

    # Enrolment.

    def begin(self, *, action: str, url: str, token: str) -> dict[str, Any]:
        """Pass an enrolment on; the ticket asks for its answer.

        Raises ControlError: it can't be begun now.
        """
        if action not in ACTIONS:
            raise ControlError(f"{action!r} is no action; expected one of {', '.join(ACTIONS)}")
        if self._asked:
            raise ControlError("another enrolment is in progress; try again in a minute")
        order = Enrol(
            action=cast('Literal["enrol", "forget", "rotate"]', action),
            situation=self.situation(),
            url=url,
            token=token,
        )
        if not self._fetcher.order(order):
            raise ControlError("the fetcher isn't running yet; try again in a few seconds")
        self._ticket += 1
        self._asked, self._answer = True, None
        return {"ticket": self._ticket}

    def progress(self, ticket: int) -> dict[str, Any]:
        """The answer to the enrolment with `ticket`, once there is one.

        Raises ControlError: that isn't the last one.
        """
        if ticket != self._ticket:
            raise ControlError(
                "another enrolment came in between; agentctl status shows the server"
            )
        if self._answer is None:
            return {"done": False}
        return {"done": True, **msgspec.structs.asdict(self._answer)}

    # What the fetcher says.

    def hear(self, word: EnrolAnswer | ServerNews) -> None:
        """Take an answer, or how it stands with the server."""
        if isinstance(word, ServerNews):
            self._news = word if word.url else None
        elif self._asked:
            self._asked, self._answer = False, word
            _log.info("enrolment_answered", ok=word.ok, code=word.code)

    def lost(self, sentence: str) -> None:
        """The fetcher is gone, and its line to the server with it."""
        self._told = None
        if self._asked:
            self.hear(EnrolAnswer(ok=False, code="fetcher_lost", sentence=sentence))
        if self._news:
            now = self._ledger.wall()
            since = self._news.since if not self._news.connected else now
            self._news = msgspec.structs.replace(
                self._news, connected=False, since=since, code="fetcher_lost", problem=sentence
            )

    def document(self) -> dict[str, Any] | None:
        """For the status; None without a server."""
        return msgspec.structs.asdict(self._news) if self._news else None
