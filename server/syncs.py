"""The mirror's runs in the database: begun, ended, and the sums over all there ever were.

The newest are kept as rows; of those that go, their sums stay, so that what is
counted never grows smaller.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from server.mirror.outcome import Synced
from server.storage.tables import Setting, SyncRun

ROWS_KEPT = 1000
GONE = "sync_totals"


class Totals(msgspec.Struct, kw_only=True):
    """Sums over runs. outcomes: {outcome: n}."""

    fetched_bytes: int = 0
    saved_bytes: int = 0
    outcomes: dict[str, int] = {}


def begin(session: Session, trigger: str, now: float) -> int:
    """A run begins; one that was interrupted is closed. Returns the row's id."""
    _close_interrupted(session, now)
    row = SyncRun(trigger=trigger, started_at=now, outcome="running")
    session.add(row)
    session.flush()
    return row.id


def end(session: Session, row: int, done: Synced, now: float) -> None:
    """It has ended; the oldest rows go."""
    session.execute(
        update(SyncRun)
        .where(SyncRun.id == row)
        .values(
            ended_at=now,
            outcome=done.outcome,
            source=done.source,
            sentence=done.sentence,
            code=done.code,
            fetched_bytes=done.fetched_bytes,
            saved_bytes=done.saved_bytes,
        )
    )
    oldest = select(SyncRun.id).order_by(SyncRun.id.desc()).offset(ROWS_KEPT).limit(1)
    if (last := session.scalar(oldest)) is not None:
        gone = msgspec.to_builtins(_with_rows(session, _gone(session), up_to=last))
        session.merge(Setting(key=GONE, value=gone, changed_at=now))
        session.execute(delete(SyncRun).where(SyncRun.id <= last))


def totals(session: Session) -> Totals:
    """Over every run, those whose rows are gone included."""
    return _with_rows(session, _gone(session))


def _gone(session: Session) -> Totals:
    row = session.get(Setting, GONE)
    return msgspec.convert(row.value, Totals) if row else Totals()


def _with_rows(session: Session, found: Totals, *, up_to: int | None = None) -> Totals:
    rows = select(
        SyncRun.outcome,
        func.count(),
        func.sum(SyncRun.fetched_bytes),
        func.sum(SyncRun.saved_bytes),
    ).group_by(SyncRun.outcome)
    if up_to is not None:
        rows = rows.where(SyncRun.id <= up_to)
    for outcome, count, fetched, saved in session.execute(rows):
        found.outcomes[outcome] = found.outcomes.get(outcome, 0) + count
        found.fetched_bytes += int(fetched or 0)
        found.saved_bytes += int(saved or 0)
    return found


def _close_interrupted(session: Session, now: float) -> None:
    session.execute(
        update(SyncRun)
        .where(SyncRun.outcome == "running")
        .values(
            outcome="failed",
            code="interrupted",
            ended_at=now,
            sentence="it was cut short; what was served before is served still",
        )
    )
