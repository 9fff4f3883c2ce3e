"""From an enrolment token to an agent with a credential of its own.

* A token makes agents or servers, never both: a server's counts speak for many machines.
* A token's use is spent in the same transaction that makes the agent.
* A machine that enrols again gets a new agent; the one before it, known by
  the same host id, is retired and its credential refused.
* Who is retired or revoked stays in the list for KEPT_S, and then goes with
  its reports: enrolling without end doesn't fill the database.
* A rotated credential replaces the old one when it is used for the first
  time, so an agent that never got it is not locked out.
"""

from __future__ import annotations

import secrets

import msgspec
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from feed.messages import Enrolled, EnrolRequest, Facts, NewCredential
from server.accounts import access, audit, names, tokens
from server.errors import RefusedError, missing
from server.fleet.needs import VERSIONS
from server.storage.database import announce
from server.storage.tables import (
    Agent,
    AgentComponent,
    AgentReport,
    Group,
    Round,
    Token,
    UpstreamCounts,
)

CREDENTIALS = "credentials"  # the topic on which an agent's id is announced
REVOKED = "revoked"  # the topic on which the id of an agent that is one no longer is announced
DEFAULT_GROUP = "default"
KEPT_S = 30 * 86_400.0
FORGOTTEN_AT_ONCE = 20  # by an enrolment, which makes one
ROTATION_ASKED = ""  # as an agent's next_credential: no secret has this digest


def enrol(
    session: Session, text: str, request: EnrolRequest, *, now: float, check_in_s: float
) -> Enrolled:
    """Make an agent of whoever holds an enrolment token.

    Raises RefusedError: 401 wrong, unknown, expired, revoked or used up; 403 it
    is for another role.
    """
    token = access.valid(session, text, kind="enrol", now=now)
    if request.role != token.role:
        raise _another_role(token.role)
    _spend(session, token)
    _retire(session, request.facts.host_id, now)
    _forget(session, now)
    agent_id, credential, digest = _credential()
    group = token.group if token.group and session.get(Group, token.group) else DEFAULT_GROUP
    agent = _agent(agent_id, request, group=group, digest=digest, token=token.id, now=now)
    # It looks at the feed when it is enrolled: earlier rounds have nothing to tell it.
    agent.answered_round = session.scalar(select(func.max(Round.id))) or 0
    session.add(agent)
    session.flush()
    session.add_all(
        AgentComponent(agent_id=agent_id, component=component, version=version)
        for component, version in request.facts.components.items()
    )
    session.flush()
    announce(session, VERSIONS, "")
    return Enrolled(agent_id=agent_id, credential=credential, group=group, check_in_s=check_in_s)


def rotate(session: Session, agent_id: str) -> NewCredential:
    """A next credential for an agent; one that was handed out and never used is void.

    Raises RefusedError 404: no such agent, or revoked.
    """
    agent = session.get(Agent, agent_id)
    if agent is None or agent.revoked_at is not None:
        raise missing("agent", agent_id)
    _, credential, agent.next_credential = _credential(agent_id)
    announce(session, CREDENTIALS, agent_id)
    return NewCredential(credential=credential)


def ask_rotation(session: Session, agent_id: str, *, now: float, by: str) -> None:
    """Have an agent ask for another credential at its next check-in; this one holds until then.

    Raises RefusedError 404: no such agent, or revoked.
    """
    agent = session.get(Agent, agent_id) if names.is_id(agent_id) else None
    if agent is None or agent.revoked_at is not None:
        raise missing("agent", agent_id[:64])
    agent.next_credential = ROTATION_ASKED
    announce(session, CREDENTIALS, agent_id)
    audit.note(session, who=by, action="rotation_asked", detail={"agent": agent_id}, now=now)


def ended(session: Session, agent: Agent, *, now: float) -> None:
    """Refuse its credential from now on; its stream ends, and its versions are needed no more."""
    agent.revoked_at = now
    session.execute(delete(AgentComponent).where(AgentComponent.agent_id == agent.id))
    announce(session, CREDENTIALS, agent.id)
    announce(session, REVOKED, agent.id)


def digest_of(facts: Facts) -> str:
    """What tells whether an agent says something new about itself."""
    return tokens.digest(msgspec.json.encode(facts, order="deterministic").decode())


def _another_role(role: str) -> RefusedError:
    options = " --for server" if role == "agent" else ""
    return RefusedError(
        f"this enrolment token is for {'agents' if role == 'agent' else 'servers'}; "
        f"serverctl tokens create enrol{options} makes the other kind",
        status=403,
        code="token_of_another_role",
    )


def _spend(session: Session, token: Token) -> None:
    """Take one use, if uses are counted. Raises RefusedError 401: none is left."""
    if token.uses_left is None:
        return
    spent = (
        update(Token)
        .where(Token.id == token.id, Token.uses_left > 0)
        .values(uses_left=Token.uses_left - 1)
        .returning(Token.id)
    )
    if session.scalar(spent) is None:
        access.refuse()


def _retire(session: Session, host_id: str, now: float) -> None:
    earlier = select(Agent).where(Agent.host_id == host_id, Agent.revoked_at.is_(None))
    for agent in session.scalars(earlier):
        ended(session, agent, now=now)


def _forget(session: Session, now: float) -> None:
    """Remove those who ended long ago, the first of them first."""
    gone = session.scalars(
        select(Agent.id)
        .where(Agent.revoked_at < now - KEPT_S)
        .order_by(Agent.revoked_at)
        .limit(FORGOTTEN_AT_ONCE)
    ).all()
    if not gone:
        return
    for table in (AgentComponent, AgentReport, UpstreamCounts):
        session.execute(delete(table).where(table.agent_id.in_(gone)))
    session.execute(delete(Agent).where(Agent.id.in_(gone)))


def _credential(agent_id: str | None = None) -> tuple[str, str, str]:
    """An agent's id, a credential for it, and the digest to keep."""
    id_bytes = bytes.fromhex(agent_id) if agent_id else secrets.token_bytes(16)
    text = tokens.make("agent", id_bytes=id_bytes, secret_bytes=secrets.token_bytes(32))
    made = tokens.parse(text)
    if made is None:
        raise ValueError("a token that was just made has the form of one")
    return made.id, text, tokens.digest(made.secret)


def _agent(
    agent_id: str, request: EnrolRequest, *, group: str, digest: str, token: str, now: float
) -> Agent:
    facts = request.facts
    return Agent(
        id=agent_id,
        role=request.role,
        host_id=facts.host_id,
        name=facts.name,
        group=group,
        platform=facts.platform,
        agent_version=facts.agent_version,
        region=facts.region,
        traits=facts.traits,
        active_release=facts.active_release,
        state=facts.state,
        reason=facts.reason,
        credential=digest,
        next_credential=None,
        enrolled_at=now,
        enrolled_with=token,
        seen_at=now,
        revoked_at=None,
        told_at=None,
        facts_digest=digest_of(facts),
    )
