"""What the fleet runs and is: what the mirror fetches and keeps increments for.

Servers below this one have told their fleets' versions in counts; they need
the same increments from here.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from feed.messages import Counts
from server.storage.tables import Agent, AgentComponent, UpstreamCounts

VERSIONS = "versions"  # the topic on which it is announced that an agent runs another one


def versions(session: Session, *, seen_since: float | None = None) -> dict[str, dict[str, int]]:
    """How many machines run which version: {component: {version: n}}.

    Silent agents are counted: they may come back. seen_since leaves out those
    that were last seen before it.
    """
    mine = [Agent.role == "agent", Agent.revoked_at.is_(None)]
    if seen_since is not None:
        mine.append(Agent.seen_at >= seen_since)
    rows = session.execute(
        select(AgentComponent.component, AgentComponent.version, func.count())
        .join(Agent, Agent.id == AgentComponent.agent_id)
        .where(*mine)
        .group_by(AgentComponent.component, AgentComponent.version)
    )
    found: dict[str, dict[str, int]] = {}
    for component, version, count in rows:
        found.setdefault(component, {})[version] = count
    for told in below(session, seen_since=seen_since):
        for component, theirs in told.versions.items():
            add(found.setdefault(component, {}), theirs)
    return found


def below(session: Session, *, seen_since: float | None = None) -> list[Counts]:
    """What the servers below this one have told last."""
    wanted = (
        select(UpstreamCounts.counts)
        .join(Agent, Agent.id == UpstreamCounts.agent_id)
        .where(Agent.revoked_at.is_(None))
    )
    if seen_since is not None:
        wanted = wanted.where(UpstreamCounts.received_at >= seen_since)
    return [msgspec.convert(counts, Counts) for counts in session.scalars(wanted)]


def add(to: dict[str, int], more: dict[str, int]) -> None:
    """Add numbers by key, in place."""
    for key, count in more.items():
        to[key] = to.get(key, 0) + count
