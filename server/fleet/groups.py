"""Groups of agents: what administrators decide for, together.

Every agent is in one. `default` always exists; a group that holds agents or
is named by an enrolment token isn't removed.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from server.accounts import audit, names
from server.accounts.enrolment import DEFAULT_GROUP
from server.errors import conflict, missing
from server.storage.tables import Agent, Group, Token


class GroupView(msgspec.Struct, frozen=True, kw_only=True):
    """A group and how many agents it holds, revoked ones apart."""

    name: str
    created_at: float
    agents: int


def listed(session: Session) -> list[GroupView]:
    """Every group, by name."""
    counts = (
        select(Agent.group, func.count().label("agents"))
        .where(Agent.revoked_at.is_(None))
        .group_by(Agent.group)
        .subquery()
    )
    rows = session.execute(
        select(Group.name, Group.created_at, func.coalesce(counts.c.agents, 0))
        .outerjoin(counts, counts.c.group == Group.name)
        .order_by(Group.name)
    )
    return [GroupView(name=row[0], created_at=row[1], agents=row[2]) for row in rows]


def found(session: Session, name: str) -> Group:
    """The group. Raises RefusedError 404."""
    row = session.get(Group, name) if names.GROUP_FORM.fullmatch(name) else None
    if row is None:
        raise missing("group", name[:64])
    return row


def create(session: Session, name: str, *, now: float, by: str) -> None:
    """A new, empty group. Raises RefusedError: 400 name, 409 there is one."""
    _vacant(session, name)
    session.add(Group(name=name, created_at=now))
    session.flush()
    audit.note(session, who=by, action="group_created", detail={"group": name}, now=now)


def remove(session: Session, name: str, *, now: float, by: str) -> None:
    """Remove an empty group.

    Raises RefusedError: 404; 409 agents or enrolment tokens are in it, or it
    is the default group.
    """
    group = found(session, name)
    _not_default(name)
    agents = session.scalar(
        select(func.count()).where(Agent.group == name, Agent.revoked_at.is_(None))
    )
    if agents:
        raise conflict(f"{agents:,} agents are in {name!r}; move them first")
    token = session.scalar(
        select(Token.name).where(Token.group == name, Token.revoked_at.is_(None)).limit(1)
    )
    if token:
        raise conflict(f"the enrolment token {token!r} is for {name!r}; revoke it first")
    session.execute(update(Agent).where(Agent.group == name).values(group=DEFAULT_GROUP))
    session.delete(group)
    session.flush()
    audit.note(session, who=by, action="group_removed", detail={"group": name}, now=now)


def _vacant(session: Session, name: str) -> None:
    if session.get(Group, names.group(name)):
        raise conflict(f"there is a group {name!r}")


def _not_default(name: str) -> None:
    if name == DEFAULT_GROUP:
        raise conflict(f"{DEFAULT_GROUP!r} is where agents go that no group is named for; it stays")
