"""The first administrator: a token that is good once, printed at the start.

Only as long as there is no administrator. Each start makes a new one, and the
one before it is worth nothing.
"""

from __future__ import annotations

import secrets

from sqlalchemy.orm import Session

from server.accounts import access, audit, tokens
from server.storage.tables import Setting

KEY = "setup"
GOOD_S = 24 * 3600.0


def prepare(session: Session, *, now: float) -> str | None:
    """A set-up token's text; None once an administrator exists."""
    if access.administrators(session, now=now):
        return None
    text = tokens.make(
        "setup", id_bytes=secrets.token_bytes(16), secret_bytes=secrets.token_bytes(32)
    )
    made = tokens.parse(text)
    if made is None:
        raise ValueError("a token that was just made has the form of one")
    value: dict[str, object] = {"id": made.id, "digest": tokens.digest(made.secret)}
    session.merge(Setting(key=KEY, value=value, changed_at=now))
    return text


def complete(session: Session, text: str, *, name: str, now: float) -> str:
    """The first administrator's token, for the set-up token; it is good no more.

    Raises RefusedError: 401, 400 the name.
    """
    given = tokens.parse(text)
    row = session.get(Setting, KEY)
    if given is None or given.kind != "setup" or row is None:
        access.refuse()
    right = tokens.matches(given.secret, str(row.value["digest"]))
    late = now - row.changed_at >= GOOD_S
    if not right or late or access.administrators(session, now=now):
        access.refuse()
    made = access.issue(session, kind="admin", name=name, now=now)
    session.delete(row)
    audit.note(session, who=name, action="set_up", detail={}, now=now)
    return made
