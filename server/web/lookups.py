"""What the API shows that no other module asks the database for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from feed.messages import Counts
from server.errors import missing
from server.fleet import counts
from server.fleet.reports import ID_MAX, ReportView
from server.storage.tables import Agent, AgentReport, SyncRun, UpstreamCounts
from server.syncs import totals
from server.web.models import Downstream, SyncView


class Fleet(NamedTuple):
    """The machines in numbers."""

    enrolled: int
    silent: int
    states: dict[str, int]


class Syncs(NamedTuple):
    """All syncs: the last that ended, and sums. outcomes: {outcome: n}."""

    last: SyncView | None
    fetched_bytes: int
    saved_bytes: int
    outcomes: dict[str, int]


def fleet(session: Session, *, now: float, silent_after_s: float) -> Fleet:
    """Agents that are not revoked; servers below are none, they tell counts now and then."""
    rows = session.execute(
        select(Agent.state, func.count()).where(*counts.MACHINES).group_by(Agent.state)
    )
    states = {state or "unknown": count for state, count in rows}
    enrolled, silent = counts.machines(session, now=now, silent_after_s=silent_after_s)
    return Fleet(enrolled, silent, states)


def syncs(session: Session) -> Syncs:
    """Of this mirror."""
    row = session.scalar(
        select(SyncRun).where(SyncRun.ended_at.is_not(None)).order_by(SyncRun.id.desc()).limit(1)
    )
    sums = totals(session)
    return Syncs(
        last=_sync(row) if row else None,
        fetched_bytes=sums.fetched_bytes,
        saved_bytes=sums.saved_bytes,
        outcomes=sums.outcomes,
    )


def _sync(row: SyncRun) -> SyncView:
    return SyncView(**{name: getattr(row, name) for name in SyncView.__struct_fields__})


def names(session: Session, ids: Iterable[str]) -> dict[str, str]:
    """What these agents are called."""
    rows = session.execute(select(Agent.id, Agent.name).where(Agent.id.in_(set(ids))))
    return {row[0]: row[1] for row in rows}


def report(session: Session, report_id: int) -> tuple[ReportView, bytes | None]:
    """One report and its evidence. Raises RefusedError 404."""
    row = session.get(AgentReport, report_id) if 0 < report_id <= ID_MAX else None
    if row is None:
        raise missing("report", str(report_id)[:64])
    fields = {name: getattr(row, name) for name in ReportView.__struct_fields__}
    return ReportView(**fields), row.evidence


def downstream(session: Session) -> list[Downstream]:
    """The servers below this one that have told something, by name."""
    rows = session.execute(
        select(Agent.id, Agent.name, UpstreamCounts.received_at, UpstreamCounts.counts)
        .join(UpstreamCounts, UpstreamCounts.agent_id == Agent.id)
        .where(Agent.revoked_at.is_(None))
        .order_by(Agent.name, Agent.id)
    )
    return [
        Downstream(
            id=row[0], name=row[1], received_at=row[2], counts=msgspec.convert(row[3], Counts)
        )
        for row in rows
    ]
