"""Check-ins: every agent's, every few minutes, written together.

The hot path. While one transaction is being flushed, further check-ins
gather; the next takes them all: one look at the agents' rows, one batched
update. An agent that says the same as last time costs one narrow update;
components are rewritten only where they changed. What waits is bounded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import bindparam, delete, func, insert, select, text, update
from sqlalchemy.orm import Session

from feed.messages import CheckIn, CheckInReply, Components
from server.accounts import access
from server.accounts.credentials import AgentIdentity
from server.accounts.enrolment import ROTATION_ASKED, digest_of
from server.errors import RefusedError, conflict
from server.fleet.needs import VERSIONS
from server.settings import Policy
from server.storage.database import RETRY_AFTER_S, Database, announce
from server.storage.tables import Agent, AgentComponent, Round

TOGETHER_MAX = 500
WAITING_MAX = 10_000


class Arrival(NamedTuple):
    """A check-in, whose credential says who it is from, and when it came."""

    agent_id: str
    said: CheckIn
    now: float


Answer = CheckInReply | RefusedError


class CheckIns:
    """Takes check-ins on the event loop and has them written together."""

    def __init__(self, database: Database, policy: Callable[[], Policy]) -> None:
        self._database = database
        self._policy = policy
        self._waiting: deque[tuple[Arrival, asyncio.Future[CheckInReply]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def take(self, identity: AgentIdentity, said: CheckIn, *, now: float) -> CheckInReply:
        """The answer, once what was said is durable.

        Raises RefusedError: 401 revoked meanwhile; 409 another machine's
        credential; 503 more wait than can be served.
        """
        if len(self._waiting) >= WAITING_MAX:
            raise RefusedError(
                "more agents check in than the server can take; try again later",
                status=503,
                code="overloaded",
                retry_after_s=RETRY_AFTER_S,
            )
        answer: asyncio.Future[CheckInReply] = asyncio.get_running_loop().create_future()
        self._waiting.append((Arrival(identity.id, said, now), answer))
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        try:
            while self._waiting:
                count = min(len(self._waiting), TOGETHER_MAX)
                taken = [self._waiting.popleft() for _ in range(count)]
                answers = await self._write([arrival for arrival, _ in taken])
                for (_, future), answer in zip(taken, answers, strict=True):
                    _tell(future, answer)
        finally:
            self._task = None

    async def _write(self, arrivals: list[Arrival]) -> Sequence[CheckInReply | Exception]:
        check_in_s = self._policy().check_in_s
        try:
            return await self._database.write(
                lambda session: record(session, arrivals, check_in_s=check_in_s)
            )
        except RefusedError as error:
            if error.status != 400 or len(arrivals) == 1:
                return [error] * len(arrivals)
        except Exception as error:  # noqa: BLE001 - handed to everybody who waits
            return [error] * len(arrivals)
        # One of them said what can't be stored; the others are not at fault.
        return [answer for one in arrivals for answer in await self._write([one])]


def record(session: Session, arrivals: Sequence[Arrival], *, check_in_s: float) -> list[Answer]:
    """Write check-ins; an answer for each, in their order.

    An agent that came more than once is left as it said last.
    """
    newest = session.scalar(select(func.max(Round.id))) or 0
    known = _known(session, {arrival.agent_id for arrival in arrivals})
    news = _News()
    answers: list[Answer] = []
    for arrival in arrivals:
        agent = known.get(arrival.agent_id)
        if agent is None:
            answers.append(access.refused())
        elif arrival.said.facts.host_id != agent.host_id:
            answers.append(
                conflict(
                    "this credential was given to another machine; enrol this one",
                    code="other_machine",
                )
            )
        else:
            agent.answered = max(agent.answered, _heard(arrival.said, newest))
            news.add(agent, arrival)
            look = agent.answered < newest
            answers.append(
                CheckInReply(
                    round=newest, look=look, check_in_s=check_in_s, rotate=agent.is_to_rotate
                )
            )
    news.write(session)
    return answers


def _heard(said: CheckIn, newest: int) -> int:
    """The round it has heard of; 0 where there was none such.

    A number past the newest is of a database that was since replaced by an
    older copy: it says nothing of the rounds that have been or will be made here.
    """
    return said.heard_round if said.heard_round <= newest else 0


class _Agent:
    """What is known of an agent before its check-in is written."""

    def __init__(
        self, agent_id: str, host_id: str, digest: str, answered: int, next_credential: str | None
    ) -> None:
        self.id = agent_id
        self.host_id = host_id
        self.digest = digest
        self.answered = answered
        self.is_to_rotate = next_credential == ROTATION_ASKED


class _News:
    """What a transaction writes: at most one row an agent."""

    def __init__(self) -> None:
        self._same: dict[str, dict[str, Any]] = {}
        self._changed: dict[str, dict[str, Any]] = {}
        self._components: dict[str, Components] = {}

    def add(self, agent: _Agent, arrival: Arrival) -> None:
        row: dict[str, Any] = {
            "agent": agent.id,
            "seen_at": arrival.now,
            "answered_round": agent.answered,
        }
        facts = arrival.said.facts
        digest = digest_of(facts)
        if digest == agent.digest and agent.id not in self._changed:
            self._same[agent.id] = row
            return
        self._same.pop(agent.id, None)
        self._components[agent.id] = facts.components
        self._changed[agent.id] = row | {
            "name": facts.name,
            "platform": facts.platform,
            "agent_version": facts.agent_version,
            "region": facts.region,
            "traits": facts.traits,
            "active_release": facts.active_release,
            "state": facts.state,
            "reason": facts.reason,
            "facts_digest": digest,
        }

    def write(self, session: Session) -> None:
        # Straight to the driver's executemany: the rows are not loaded.
        connection = session.connection()
        if self._same and connection.dialect.name == "postgresql":
            connection.execute(_SAME_AT_ONCE, _columns(self._same.values()))
        elif self._same:
            connection.execute(_SAME, list(self._same.values()))
        if self._changed:
            connection.execute(_CHANGED, list(self._changed.values()))
            _rewrite(session, self._components)


_AGENTS: Any = Agent.__table__
_COMPONENTS: Any = AgentComponent.__table__
_SAME = (
    update(_AGENTS)
    .where(_AGENTS.c.id == bindparam("agent"))
    .values(seen_at=bindparam("seen_at"), answered_round=bindparam("answered_round"))
)
# One statement for all of them: a message each is most of what PostgreSQL would cost.
_SAME_AT_ONCE = text(
    "UPDATE agents SET seen_at = said.seen_at, answered_round = said.answered_round "
    "FROM unnest(CAST(:agent AS text[]), CAST(:seen_at AS float8[]), "
    "CAST(:answered_round AS int[])) AS said (agent, seen_at, answered_round) "
    "WHERE agents.id = said.agent"
)
_CHANGED = _SAME.values(
    {
        column: bindparam(column)
        for column in (
            "name",
            "platform",
            "agent_version",
            "region",
            "traits",
            "active_release",
            "state",
            "reason",
            "facts_digest",
        )
    }
)
_ONE = (_COMPONENTS.c.agent_id == bindparam("agent"), _COMPONENTS.c.component == bindparam("name"))
_REMOVE = delete(_COMPONENTS).where(*_ONE)
_REPLACE = update(_COMPONENTS).where(*_ONE).values(version=bindparam("version"))
_ADD = insert(_COMPONENTS).values(
    agent_id=bindparam("agent"), component=bindparam("name"), version=bindparam("version")
)


def _columns(rows: Iterable[dict[str, Any]]) -> dict[str, list[Any]]:
    """The same rows, as a list of values for each name."""
    found: dict[str, list[Any]] = {"agent": [], "seen_at": [], "answered_round": []}
    for row in rows:
        for name, values in found.items():
            values.append(row[name])
    return found


def _known(session: Session, ids: Iterable[str]) -> dict[str, _Agent]:
    rows = session.execute(
        select(
            Agent.id,
            Agent.host_id,
            Agent.facts_digest,
            Agent.answered_round,
            Agent.next_credential,
        ).where(Agent.id.in_(ids), Agent.revoked_at.is_(None))
    )
    return {row[0]: _Agent(*row) for row in rows}


def _rewrite(session: Session, said: dict[str, Components]) -> None:
    """Change the components of agents that run others than are stored, and only these."""
    stored: dict[str, dict[str, str]] = {agent_id: {} for agent_id in said}
    known = session.execute(
        select(AgentComponent.agent_id, AgentComponent.component, AgentComponent.version).where(
            AgentComponent.agent_id.in_(said)
        )
    )
    for agent_id, component, version in known:
        stored[agent_id][component] = version
    gone, other, fresh = [], [], []
    for agent_id, now in said.items():
        before = stored[agent_id]
        gone += [_row(agent_id, name) for name in before.keys() - now.keys()]
        for name, version in now.items():
            if name not in before:
                fresh.append(_row(agent_id, name) | {"version": version})
            elif before[name] != version:
                other.append(_row(agent_id, name) | {"version": version})
    connection = session.connection()
    for statement, rows in ((_REMOVE, gone), (_REPLACE, other), (_ADD, fresh)):
        if rows:
            connection.execute(statement, rows)
    if other or fresh:
        announce(session, VERSIONS, "")


def _row(agent_id: str, component: str) -> dict[str, str]:
    return {"agent": agent_id, "name": component}


def _tell(future: asyncio.Future[CheckInReply], answer: CheckInReply | Exception) -> None:
    if future.done():  # whoever asked has gone
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
