"""The rounds in the database: made, told, answered, and where each agent stands."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import bindparam, case, func, select, update
from sqlalchemy.orm import Session

from server.accounts.enrolment import REVOKED
from server.notify import news as told_of
from server.notify.hub import Announced, Hub, Known, Told
from server.notify.spread import Standing
from server.settings import Policy
from server.storage.database import Database
from server.storage.tables import Agent, Round
from server.web.asgi import Scope

PAGE_MAX = 500


class RoundView(msgspec.Struct, frozen=True, kw_only=True):
    """A round for administrators. told and answered: agents that were told of it, or of a
    later one, and that have heard of it."""

    id: int
    created_at: float
    window_s: float
    cause: str
    by: str
    told: int
    answered: int


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """What was set going: connected agents are told within window_s, others on return."""

    round: int
    connected: int
    window_s: float


def create(
    session: Session, *, cause: str, by: str, window_s: float, now: float, news: str | None = None
) -> Announced:
    """A new round, the newest. news: the digest of what it tells of, see server.notify.news."""
    if news is not None:
        told_of.note(session, news, now=now)
    row = Round(created_at=now, window_s=window_s, cause=cause, by=by)
    session.add(row)
    session.flush()
    return Announced(row.id, now, window_s)


def newest(session: Session) -> Announced:
    """The round that counts; number 0 before the first."""
    row = session.scalar(select(Round).order_by(Round.id.desc()).limit(1))
    return Announced(row.id, row.created_at, row.window_s) if row else Announced()


def standings(session: Session, agent_ids: Sequence[str]) -> dict[str, Standing]:
    """How far each of these agents is."""
    rows = session.execute(
        select(
            Agent.id, Agent.answered_round, Agent.told_round, Agent.told_times, Agent.told_at
        ).where(Agent.id.in_(agent_ids))
    )
    return {row[0]: Standing(*row[1:]) for row in rows}


_AGENTS: Any = Agent.__table__
_TOLD = (
    update(_AGENTS)
    .where(_AGENTS.c.id == bindparam("agent"), _AGENTS.c.told_round <= bindparam("number"))
    .values(
        told_round=bindparam("number"),
        told_times=case(
            (_AGENTS.c.told_round == bindparam("number"), _AGENTS.c.told_times + 1), else_=1
        ),
        told_at=bindparam("at"),
    )
)


def told(session: Session, batch: Sequence[Told]) -> None:
    """Write down who was told of what, and when."""
    # In one order of rows, so that no two transactions wait for each other.
    rows = [item._asdict() for item in sorted(batch)]
    named = [{"agent": row["agent_id"], "number": row["number"], "at": row["at"]} for row in rows]
    session.connection().execute(_TOLD, named)


def recent(session: Session, *, limit: int = 50) -> list[RoundView]:
    """The newest first."""
    rows = session.scalars(
        select(Round).order_by(Round.id.desc()).limit(max(1, min(limit, PAGE_MAX)))
    ).all()
    return [view(session, row) for row in rows]


def view(session: Session, row: Round) -> RoundView:
    """A round with its counts."""
    heard, said = session.execute(
        select(
            func.count(case((Agent.told_round >= row.id, 1))),
            func.count(case((Agent.answered_round >= row.id, 1))),
        ).where(Agent.revoked_at.is_(None))
    ).one()
    return RoundView(
        id=row.id,
        created_at=row.created_at,
        window_s=row.window_s,
        cause=row.cause,
        by=row.by,
        told=heard,
        answered=said,
    )


def hub_of(
    database: Database,
    authenticate: Callable[[Scope], Awaitable[Known]],
    *,
    policy: Callable[[], Policy],
    clock: Callable[[], float],
    most: int,
    newest: Announced,
) -> Hub:
    """A hub that keeps its accounts in this database and ends the streams of who is revoked."""

    async def look_up(ids: Sequence[str]) -> Mapping[str, Standing]:
        return await database.read(lambda session: standings(session, ids))

    async def write_down(batch: Sequence[Told]) -> None:
        await database.write(lambda session: told(session, batch))

    hub = Hub(
        authenticate=authenticate,
        standings=look_up,
        told=write_down,
        policy=policy,
        clock=clock,
        most=most,
        newest=newest,
    )
    database.subscribe(REVOKED, hub.expel_from_thread)
    return hub


class Announcer:
    """Makes a round and sets it going: durable first, then told."""

    def __init__(self, database: Database, hub: Hub, clock: Callable[[], float]) -> None:
        self._database = database
        self._hub = hub
        self._clock = clock

    async def announce(self, *, cause: str, by: str, news: str | None = None) -> Announcement:
        """Tell every agent to look."""
        window_s, now = self._hub.window_s(), self._clock()
        made = await self._database.write(
            lambda session: create(
                session, cause=cause, by=by, window_s=window_s, now=now, news=news
            )
        )
        self._hub.announce(made)
        return Announcement(
            round=made.number, connected=self._hub.connected, window_s=made.window_s
        )

    async def __call__(self, *, cause: str, by: str, news: str | None = None) -> int:
        """As `announce`; the round's number."""
        return (await self.announce(cause=cause, by=by, news=news)).round
