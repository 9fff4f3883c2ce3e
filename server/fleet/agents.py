"""The list of machines: pages, one in full, moving and revoking them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, and_, or_, select, tuple_
from sqlalchemy.orm import Session

from server.accounts import audit, enrolment, names
from server.accounts.enrolment import CREDENTIALS
from server.errors import RefusedError, missing
from server.fleet import groups, presence
from server.storage.database import announce
from server.storage.tables import Agent, AgentComponent

PAGE_MAX = 500


class AgentView(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the list. silent_since: when its silence began to count; a server's never does."""

    id: str
    role: str
    name: str
    host_id: str
    group: str
    platform: str
    agent_version: str
    region: str
    traits: dict[str, str]
    active_release: str | None
    state: str
    reason: str
    enrolled_at: float
    seen_at: float
    silent_since: float | None
    revoked_at: float | None
    answered_round: int
    told_round: int
    told_times: int


class AgentDetail(AgentView, frozen=True, kw_only=True):
    """One machine in full."""

    components: dict[str, str]
    enrolled_with: str
    told_at: float | None
    dropped_reports: dict[str, int]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which agents; None: either.

    outdated ones run a release that isn't among `current`, the releases that
    this server serves; nobody is outdated while it serves none.
    """

    group: str | None = None
    release: str | None = None
    silent: bool | None = None
    outdated: bool | None = None
    revoked: bool = False
    role: str | None = None


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Some agents by name; `after` asks for the next page, None: this is the last."""

    agents: tuple[AgentView, ...]
    after: str | None


def page(
    session: Session,
    wanted: Wanted,
    *,
    now: float,
    silent_after_s: float,
    current: Collection[str] = (),
    after: str | None = None,
    limit: int = 100,
) -> Page:
    """A page of the agents that are wanted, by name, then id.

    Raises RefusedError 400: `after` isn't from an earlier page.
    """
    limit = max(1, min(limit, PAGE_MAX))
    conditions = _conditions(wanted, now=now, silent_after_s=silent_after_s, current=current)
    if after is not None:
        conditions.append(tuple_(Agent.name, Agent.id) > tuple_(*_place(after)))
    rows = session.scalars(
        select(Agent).where(*conditions).order_by(Agent.name, Agent.id).limit(limit + 1)
    ).all()
    shown = rows[:limit]
    return Page(
        agents=tuple(
            AgentView(**_facts(row, now=now, silent_after_s=silent_after_s)) for row in shown
        ),
        after=_cursor(shown[-1]) if len(rows) > limit else None,
    )


def show(session: Session, agent_id: str, *, now: float, silent_after_s: float) -> AgentDetail:
    """One agent, revoked ones too. Raises RefusedError 404."""
    agent = _found(session, agent_id)
    components = session.execute(
        select(AgentComponent.component, AgentComponent.version)
        .where(AgentComponent.agent_id == agent_id)
        .order_by(AgentComponent.component)
    )
    return AgentDetail(
        **_facts(agent, now=now, silent_after_s=silent_after_s),
        components={row[0]: row[1] for row in components},
        enrolled_with=agent.enrolled_with,
        told_at=agent.told_at,
        dropped_reports=agent.dropped_reports,
    )


def move(session: Session, ids: Sequence[str], *, group: str, now: float, by: str) -> None:
    """Put agents into a group. Raises RefusedError 404: none is moved then."""
    groups.found(session, group)
    for agent_id in ids:
        agent = _found(session, agent_id)
        before, agent.group = agent.group, group
        announce(session, CREDENTIALS, agent_id)
        detail: dict[str, object] = {"agent": agent_id, "from": before, "to": group}
        audit.note(session, who=by, action="agent_moved", detail=detail, now=now)


def revoke(session: Session, agent_id: str, *, now: float, by: str) -> None:
    """End an agent's credential; it must enrol again. Once more changes nothing.

    Raises RefusedError 404.
    """
    agent = _found(session, agent_id)
    if agent.revoked_at is not None:
        return
    enrolment.ended(session, agent, now=now)
    detail: dict[str, object] = {"agent": agent_id, "name": agent.name}
    audit.note(session, who=by, action="agent_revoked", detail=detail, now=now)


def _found(session: Session, agent_id: str) -> Agent:
    agent = session.get(Agent, agent_id) if names.is_id(agent_id) else None
    if agent is None:
        raise missing("agent", agent_id[:64])
    return agent


def _conditions(
    wanted: Wanted, *, now: float, silent_after_s: float, current: Collection[str]
) -> list[ColumnElement[bool]]:
    revoked = Agent.revoked_at.is_not(None) if wanted.revoked else Agent.revoked_at.is_(None)
    conditions: list[ColumnElement[bool]] = [revoked]
    if wanted.group is not None:
        conditions.append(Agent.group == wanted.group)
    if wanted.release is not None:
        conditions.append(Agent.active_release == wanted.release)
    if wanted.role is not None:
        conditions.append(Agent.role == wanted.role)
    if wanted.silent is not None:
        seen_before = presence.seen_before(now=now, silent_after_s=silent_after_s)
        quiet = and_(Agent.role == "agent", Agent.seen_at < seen_before)
        conditions.append(quiet if wanted.silent else ~quiet)
    if wanted.outdated is not None:
        conditions.append(_outdated(current) if wanted.outdated else ~_outdated(current))
    return conditions


def _outdated(current: Collection[str]) -> ColumnElement[bool]:
    if not current:
        return Agent.id.is_(None)
    return or_(Agent.active_release.is_(None), Agent.active_release.not_in(sorted(current)))


def _facts(agent: Agent, *, now: float, silent_after_s: float) -> dict[str, Any]:
    said = {
        name: getattr(agent, name) for name in AgentView.__struct_fields__ if name != "silent_since"
    }
    since = None
    if agent.revoked_at is None and agent.role == "agent":
        since = presence.silent_since(seen_at=agent.seen_at, now=now, silent_after_s=silent_after_s)
    return said | {"silent_since": since}


def _cursor(agent: Agent) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode((agent.name, agent.id))).decode()


def _place(after: str) -> tuple[str, str]:
    try:
        return msgspec.json.decode(
            base64.b64decode(after, b"-_", validate=True), type=tuple[str, str]
        )
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise RefusedError(
            "after: not from an earlier page", status=400, code="cursor_invalid"
        ) from error
