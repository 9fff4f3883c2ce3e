"""Administrators' and enrolment tokens: made, held against, taken back.

* The text of a token leaves here once, when it is made.
* A token that is wrong, unknown, expired or revoked is refused with one
  sentence; only the server's own log may know which it was.
"""

from __future__ import annotations

import secrets
from typing import Literal, NoReturn

import msgspec
from sqlalchemy import Select, delete, func, or_, select
from sqlalchemy.orm import Session

from server.accounts import audit, names, tokens
from server.errors import RefusedError, conflict, missing
from server.storage.tables import Group, Token

LOCAL = "serverctl"  # the administrator that serverctl on this machine is
_NOBODY = tokens.digest("")


class TokenView(msgspec.Struct, frozen=True, kw_only=True):
    """What administrators see of a token: everything but the secret."""

    id: str
    kind: Literal["admin", "enrol"]
    name: str
    role: Literal["agent", "server"]
    group: str | None
    created_at: float
    expires_at: float | None
    uses_left: int | None
    revoked_at: float | None
    usable: bool


def refused() -> RefusedError:
    """401, whatever was wrong with the token."""
    return RefusedError("the token isn't valid here", status=401, code="token_refused")


def refuse() -> NoReturn:
    """Raises RefusedError 401."""
    raise refused() from None


def issue(
    session: Session,
    *,
    kind: Literal["admin", "enrol"],
    name: str,
    now: float,
    expires_at: float | None = None,
    uses: int | None = None,
    role: Literal["agent", "server"] = "agent",
    group: str | None = None,
    pin: str | None = None,
) -> str:
    """A new token's text, which is nowhere kept.

    uses, role and group are for enrolment tokens: how many, what they become,
    and where they go. pin is carried in the text: the SHA-256 of the server's authority.

    Raises RefusedError: 400 name, time or uses; 404 group; 409 an
    administrator of that name exists.
    """
    _check(session, kind=kind, name=name, now=now, expires_at=expires_at, uses=uses, group=group)
    if role != "agent" and kind != "enrol":
        raise _invalid("only enrolment tokens are for servers")
    text = tokens.make(
        kind, id_bytes=secrets.token_bytes(16), secret_bytes=secrets.token_bytes(32), pin=pin
    )
    made = tokens.parse(text)
    if made is None:
        raise ValueError("a pin is 64 lowercase hex digits")
    session.add(
        Token(
            id=made.id,
            kind=kind,
            name=name,
            digest=tokens.digest(made.secret),
            role=role,
            group=group,
            created_at=now,
            expires_at=expires_at,
            uses_left=uses,
            revoked_at=None,
        )
    )
    session.flush()
    return text


def administrator(session: Session, text: str, *, now: float) -> str:
    """The name of the administrator whose token this is.

    Raises RefusedError 401.
    """
    return valid(session, text, kind="admin", now=now).name


def valid(session: Session, text: str, *, kind: Literal["admin", "enrol"], now: float) -> Token:
    """The row of a token that is good for `kind` at this time.

    Raises RefusedError 401, after as much work for a wrong one as for a good one.
    """
    given = tokens.parse(text)
    if given is None or given.kind != kind:
        refuse()
    row = session.get(Token, given.id)
    right = tokens.matches(given.secret, row.digest if row else _NOBODY)
    if not right or row is None or row.kind != kind or not _usable(row, now):
        refuse()
    return row


def revoke(session: Session, token_id: str, *, now: float, by: str) -> None:
    """End a token; once more changes nothing.

    Raises RefusedError: 404; 409 it is the last administrator's.
    """
    row = session.get(Token, token_id) if names.is_id(token_id) else None
    if row is None:
        raise missing("token", token_id)
    if row.revoked_at is not None:
        return
    if row.kind == "admin" and _usable(row, now) and not _others(session, row, now):
        raise conflict(
            f"{row.name!r} is the last administrator; make another token first",
            code="last_administrator",
        )
    row.revoked_at = now
    audit.note(session, who=by, action="token_revoked", detail=_told(row), now=now)


def listed(session: Session, *, now: float) -> list[TokenView]:
    """Every token, the newest first."""
    rows = session.scalars(select(Token).order_by(Token.created_at.desc(), Token.id)).all()
    return [_view(row, now) for row in rows]


def local(session: Session, *, now: float) -> str:
    """A fresh token for serverctl on this machine; those before it are gone."""
    session.execute(delete(Token).where(Token.kind == "admin", Token.name == LOCAL))
    return issue(session, kind="admin", name=LOCAL, now=now)


def administrators(session: Session, *, now: float) -> int:
    """How many tokens of administrators are good now, serverctl's own apart."""
    return session.scalar(_usable_administrators(now)) or 0


def _usable_administrators(now: float) -> Select[int]:
    return (
        select(func.count())
        .select_from(Token)
        .where(Token.kind == "admin", Token.revoked_at.is_(None), Token.name != LOCAL)
        .where(or_(Token.expires_at.is_(None), Token.expires_at > now))
    )


def _others(session: Session, row: Token, now: float) -> int:
    return session.scalar(_usable_administrators(now).where(Token.id != row.id)) or 0


def _check(
    session: Session,
    *,
    kind: str,
    name: str,
    now: float,
    expires_at: float | None,
    uses: int | None,
    group: str | None,
) -> None:
    names.label(name)
    if expires_at is not None and expires_at <= now:
        raise _invalid("a token must expire in the future")
    if uses is not None and not (kind == "enrol" and 1 <= uses <= 1_000_000):
        raise _invalid("uses: expected 1 to 1,000,000, on an enrolment token")
    if group is not None and kind != "enrol":
        raise _invalid("only enrolment tokens have a group")
    if group is not None and session.get(Group, names.group(group)) is None:
        raise missing("group", group)
    taken = select(Token.id).where(
        Token.kind == "admin",
        Token.name == name,
        Token.revoked_at.is_(None),
        or_(Token.expires_at.is_(None), Token.expires_at > now),
    )
    if kind == "admin" and session.scalar(taken):
        raise conflict(f"there is an administrator {name!r}; revoke that token or choose a name")


def _invalid(sentence: str) -> RefusedError:
    return RefusedError(sentence, status=400, code="value_refused")


def _usable(row: Token, now: float) -> bool:
    return (
        row.revoked_at is None
        and (row.expires_at is None or now < row.expires_at)
        and row.uses_left != 0
    )


def _told(row: Token) -> dict[str, object]:
    return {"id": row.id, "kind": row.kind, "name": row.name}


def _view(row: Token, now: float) -> TokenView:
    return TokenView(
        id=row.id,
        kind="admin" if row.kind == "admin" else "enrol",
        name=row.name,
        role="server" if row.role == "server" else "agent",
        group=row.group,
        created_at=row.created_at,
        expires_at=row.expires_at,
        uses_left=row.uses_left,
        revoked_at=row.revoked_at,
        usable=_usable(row, now),
    )
