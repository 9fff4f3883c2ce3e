"""What agents were told of last, kept with the round that told them.

A process that ends between a switch and its announcement finds at its next
start that what it serves is another thing than what was told.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from server.storage.tables import Setting

KEY = "announced"


def told(session: Session) -> str:
    """The digest of what was told of last, "" before the first."""
    row = session.get(Setting, KEY)
    return str(row.value["digest"]) if row else ""


def note(session: Session, digest: str, *, now: float) -> None:
    """This is told of, by a round of the same transaction."""
    session.merge(Setting(key=KEY, value={"digest": digest}, changed_at=now))
