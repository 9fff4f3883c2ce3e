"""What administrators did, when, and to what; never a secret."""

from __future__ import annotations

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from server.storage.tables import AuditEntry

PAGE_MAX = 500


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the audit."""

    id: int
    at: float
    who: str
    action: str
    detail: dict[str, object]


def note(session: Session, *, who: str, action: str, detail: dict[str, object], now: float) -> None:
    """Add a line, in the same transaction as what it tells of."""
    session.add(AuditEntry(at=now, who=who, action=action, detail=detail))


def recent(session: Session, *, limit: int = 100, before_id: int | None = None) -> list[Entry]:
    """The newest lines first; before_id is the id of the last one seen."""
    rows = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(max(1, min(limit, PAGE_MAX)))
    if before_id is not None:
        rows = rows.where(AuditEntry.id < min(before_id, 2**31 - 1))
    return [
        Entry(id=row.id, at=row.at, who=row.who, action=row.action, detail=row.detail)
        for row in session.scalars(rows)
    ]
