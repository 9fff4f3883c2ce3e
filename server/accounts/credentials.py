"""Whose credential is this: asked with every request of every agent.

Digests are kept in memory, bounded. What changes a credential announces the
agent's id; it is forgotten here before the change is acknowledged, so that a
revoked one is refused from then on.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Literal, NamedTuple

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from server.accounts import access, tokens
from server.accounts.enrolment import CREDENTIALS
from server.storage.database import Database, announce
from server.storage.tables import Agent

KEPT_MAX = 50_000


class AgentIdentity(msgspec.Struct, frozen=True):
    """Who is speaking; by its credential, never by what it says."""

    id: str
    role: Literal["agent", "server"]
    group: str


class _Known(NamedTuple):
    identity: AgentIdentity
    digest: str
    next_digest: str | None

    def __repr__(self) -> str:
        return f"_Known({self.identity!r})"


class Credentials:
    """The agents' credentials of one database."""

    def __init__(self, database: Database, *, kept_max: int = KEPT_MAX) -> None:
        self._database = database
        self._kept_max = kept_max
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._changes = 0  # what was read before a change isn't remembered after it
        self._lock = threading.Lock()
        database.subscribe(CREDENTIALS, self.forget)

    async def agent(self, text: str) -> AgentIdentity:
        """Whose credential `text` is.

        Raises RefusedError 401: wrong, unknown, revoked or replaced.
        """
        given = tokens.parse(text)
        if given is None or given.kind != "agent":
            access.refuse()
        known = await self._find(given.id)
        if known is None:
            access.refuse()
        digest = tokens.digest(given.secret)
        if tokens.same(digest, known.digest):
            return known.identity
        if known.next_digest is None or not tokens.same(digest, known.next_digest):
            access.refuse()
        if not await self._database.write(lambda session: _replace(session, given.id, digest)):
            access.refuse()
        return known.identity

    def forget(self, agent_id: str) -> None:
        """Ask the database again about this agent."""
        with self._lock:
            self._changes += 1
            self._known.pop(agent_id, None)

    async def _find(self, agent_id: str) -> _Known | None:
        with self._lock:
            changes = self._changes
            if known := self._known.get(agent_id):
                self._known.move_to_end(agent_id)
                return known
        found = await self._database.read(lambda session: _load(session, agent_id))
        if found:
            self._keep(agent_id, found, changes)
        return found

    def _keep(self, agent_id: str, found: _Known, changes: int) -> None:
        with self._lock:
            if changes != self._changes:
                return
            self._known[agent_id] = found
            if len(self._known) > self._kept_max:
                self._known.popitem(last=False)


def _load(session: Session, agent_id: str) -> _Known | None:
    row = session.execute(
        select(Agent.role, Agent.group, Agent.credential, Agent.next_credential).where(
            Agent.id == agent_id, Agent.revoked_at.is_(None)
        )
    ).one_or_none()
    if row is None:
        return None
    role: Literal["agent", "server"] = "server" if row.role == "server" else "agent"
    return _Known(AgentIdentity(agent_id, role, row.group), row.credential, row.next_credential)


def _replace(session: Session, agent_id: str, digest: str) -> bool:
    """Make the next credential the credential; False when it is the next one no more."""
    agent = session.get(Agent, agent_id)
    if agent is None or agent.revoked_at is not None:
        return False
    if agent.next_credential != digest:
        return agent.credential == digest
    agent.credential, agent.next_credential = digest, None
    announce(session, CREDENTIALS, agent_id)
    return True
