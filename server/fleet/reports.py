"""How updates ended on the machines, each told once, with evidence while there is room.

* An attempt that is known already is acknowledged again and changes nothing.
* Evidence is bounded: each piece, each agent's, and all of it. It goes first
  from the agents that hold the most (at least half as much as any), and there
  the least important: of what was committed, then of what failed or was held,
  last of what was reverted; the oldest first among equals.
* So agents that report without end lose their own, nobody else's.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import ColumnElement, Select, case, delete, func, select, update
from sqlalchemy.orm import Session

from feed.messages import EVIDENCE_BYTES_MAX, Report, Reports, ReportsTaken
from server.errors import missing
from server.storage.tables import Agent, AgentReport

EVIDENCE_TOTAL_MAX = 256 << 20
AGENT_EVIDENCE_MAX = 2 << 20
AGENT_REPORTS_MAX = 2_000
PAGE_MAX = 500
COUNT_MAX = 1 << 53
ID_MAX = 2**31 - 1

_IMPORTANCE = {"committed": 0, "failed": 1, "held": 1, "reverted": 2}
_AT_A_TIME = 50


class ReportView(msgspec.Struct, frozen=True, kw_only=True):
    """A report as administrators see it; evidence is asked for by id."""

    id: int
    agent_id: str
    attempt: str
    outcome: str
    release: str
    from_release: str | None
    trigger: str
    reason: str
    sentence: str
    cause: str
    ended_at: float
    received_at: float
    seconds_in_trial: float | None
    wire_bytes: int | None
    full_bytes: int | None
    evidence_bytes: int


def take(session: Session, agent_id: str, reports: Reports, *, now: float) -> ReportsTaken:
    """Keep an agent's reports; every attempt among them counts once.

    Raises RefusedError 404: no such agent, or revoked.
    """
    agent = session.get(Agent, agent_id)
    if agent is None or agent.revoked_at is not None:
        raise missing("agent", agent_id)
    told = {report.attempt: report for report in reports.reports}
    known = set(
        session.scalars(
            select(AgentReport.attempt).where(
                AgentReport.agent_id == agent_id, AgentReport.attempt.in_(told)
            )
        )
    )
    fresh = [report for attempt, report in told.items() if attempt not in known]
    session.add_all(_row(agent_id, report, now) for report in fresh)
    # The same request once more tells of the same losses once more.
    if fresh or not told:
        agent.dropped_reports = _added(agent.dropped_reports, reports.dropped)
    agent.seen_at = max(agent.seen_at, now)
    session.flush()
    if fresh:
        _bound(session, agent_id)
    return ReportsTaken(taken=tuple(told))


def recent(
    session: Session,
    *,
    limit: int = 100,
    before_id: int | None = None,
    agent_id: str | None = None,
    outcome: str | None = None,
    release: str | None = None,
) -> list[ReportView]:
    """Reports, the newest first; before_id is the id of the last one seen."""
    conditions: list[ColumnElement[bool]] = []
    if before_id is not None:
        conditions.append(AgentReport.id < max(0, min(before_id, ID_MAX)))
    if agent_id is not None:
        conditions.append(AgentReport.agent_id == agent_id)
    if outcome is not None:
        conditions.append(AgentReport.outcome == outcome)
    if release is not None:
        conditions.append(AgentReport.release == release)
    columns = [getattr(AgentReport, name) for name in ReportView.__struct_fields__]
    rows = session.execute(
        select(*columns)
        .where(*conditions)
        .order_by(AgentReport.id.desc())
        .limit(max(1, min(limit, PAGE_MAX)))
    )
    return [ReportView(**row._asdict()) for row in rows]


def outcomes(session: Session) -> dict[str, dict[str, int]]:
    """How many attempts ended how, by release: {release: {outcome: n}}."""
    rows = session.execute(
        select(AgentReport.release, AgentReport.outcome, func.count()).group_by(
            AgentReport.release, AgentReport.outcome
        )
    )
    found: dict[str, dict[str, int]] = {}
    for release, outcome, count in rows:
        found.setdefault(release, {})[outcome] = count
    return found


def _row(agent_id: str, report: Report, now: float) -> AgentReport:
    kept = _evidence(bytes(report.evidence))
    return AgentReport(
        agent_id=agent_id,
        attempt=report.attempt,
        outcome=report.outcome,
        release=report.release,
        from_release=report.from_release,
        trigger=report.trigger,
        reason=report.reason,
        sentence=report.sentence,
        cause=report.cause,
        ended_at=report.ended,
        received_at=now,
        seconds_in_trial=report.seconds_in_trial,
        wire_bytes=report.wire_bytes,
        full_bytes=report.full_bytes,
        evidence=None if kept == b"null" else kept,
        evidence_bytes=0 if kept == b"null" else len(kept),
    )


def _evidence(told: bytes) -> bytes:
    """What is kept of it: JSON that may be shown; what is too large, or no text, is left out."""
    try:
        if len(told) <= EVIDENCE_BYTES_MAX and told.decode():
            return told
    except UnicodeDecodeError:
        pass
    return msgspec.json.encode({"omitted_bytes": len(told)})


def _added(before: dict[str, int], more: dict[str, int]) -> dict[str, int]:
    """Losses by outcome; an outcome that nobody knows isn't counted."""
    known = {outcome: more[outcome] for outcome in _IMPORTANCE if outcome in more}
    return before | {
        outcome: min(before.get(outcome, 0) + count, COUNT_MAX) for outcome, count in known.items()
    }


def _bound(session: Session, agent_id: str) -> None:
    mine = AgentReport.agent_id == agent_id
    count = session.scalar(select(func.count()).select_from(AgentReport).where(mine)) or 0
    if count > AGENT_REPORTS_MAX:
        excess = _least_important(session, [mine], count - AGENT_REPORTS_MAX)
        ids = [report_id for report_id, _ in excess]
        session.execute(delete(AgentReport).where(AgentReport.id.in_(ids)))
    _shed(session, [mine], AGENT_EVIDENCE_MAX)
    _shed(session, [], EVIDENCE_TOTAL_MAX)


def _shed(session: Session, scope: Sequence[ColumnElement[bool]], bytes_max: int) -> None:
    """Forget the least important evidence until the rest fits."""
    held = [*scope, AgentReport.evidence_bytes > 0]
    total = session.scalar(select(func.sum(AgentReport.evidence_bytes)).where(*held)) or 0
    while total > bytes_max:
        gone = []
        where = [*held, AgentReport.agent_id.in_(_largest(session, held))]
        for report_id, length in _least_important(session, where, _AT_A_TIME):
            if total <= bytes_max:
                break
            gone.append(report_id)
            total -= length
        session.execute(
            update(AgentReport)
            .where(AgentReport.id.in_(gone))
            .values(evidence=None, evidence_bytes=0)
        )


def _largest(session: Session, held: Sequence[ColumnElement[bool]]) -> Select[str]:
    """The agents that hold the most."""
    amount = func.sum(AgentReport.evidence_bytes)
    amounts = select(amount.label("held")).where(*held).group_by(AgentReport.agent_id).subquery()
    most = session.scalar(select(func.max(amounts.c.held))) or 0
    return (
        select(AgentReport.agent_id)
        .where(*held)
        .group_by(AgentReport.agent_id)
        .having(amount * 2 >= most)
    )


def _least_important(
    session: Session, scope: Sequence[ColumnElement[bool]], limit: int
) -> list[tuple[int, int]]:
    rank = case(_IMPORTANCE, value=AgentReport.outcome, else_=0)
    rows = session.execute(
        select(AgentReport.id, AgentReport.evidence_bytes)
        .where(*scope)
        .order_by(rank, AgentReport.received_at, AgentReport.id)
        .limit(limit)
    )
    return [(row[0], row[1]) for row in rows]
