"""What this server tells the next one, and keeps of what servers below it tell.

Numbers only: no machine's name, id or address leaves. What the servers below
have told is part of it, so the vendor's end sees one fleet.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from feed.messages import Counts
from server.errors import RefusedError
from server.fleet import needs, presence, reports
from server.fleet.reports import COUNT_MAX
from server.storage.tables import Agent, Setting, UpstreamCounts

KEY = "counts_serial"
KEYS_MAX = 256  # as feed.messages.Counts allows
OUTCOMES_MAX = 8
MACHINES = (Agent.role == "agent", Agent.revoked_at.is_(None))


def build(session: Session, *, now: float, silent_after_s: float) -> Counts:
    """The counts as of now, with the next serial: a write."""
    totals = current(session, now=now, silent_after_s=silent_after_s)
    row = session.get(Setting, KEY)
    serial = 1 + (int(str(row.value["serial"])) if row else 0)
    session.merge(Setting(key=KEY, value={"serial": serial}, changed_at=now))
    return msgspec.structs.replace(totals, serial=serial)


def current(session: Session, *, now: float, silent_after_s: float) -> Counts:
    """The counts as of now, serial 0: for this server's own pages and metrics."""
    agents, silent = machines(session, now=now, silent_after_s=silent_after_s)
    releases = {
        release: count
        for release, count in session.execute(
            select(Agent.active_release, func.count())
            .where(*MACHINES)
            .group_by(Agent.active_release)
        )
        if release is not None
    }
    outcomes = reports.outcomes(session)
    below = needs.below(session)
    for told in below:
        needs.add(releases, told.releases)
        for release, theirs in told.outcomes.items():
            needs.add(outcomes.setdefault(release, {}), theirs)
    return Counts(
        serial=0,
        agents=min(agents + sum(told.agents for told in below), COUNT_MAX),
        silent=min(silent + sum(told.silent for told in below), COUNT_MAX),
        releases=_numbers(releases, KEYS_MAX),
        versions=_tables(needs.versions(session), KEYS_MAX),
        outcomes=_tables(outcomes, OUTCOMES_MAX),
    )


def machines(session: Session, *, now: float, silent_after_s: float) -> tuple[int, int]:
    """How many there are here, and how many of them are silent; servers are none."""
    seen_before = presence.seen_before(now=now, silent_after_s=silent_after_s)
    agents, silent = session.execute(
        select(func.count(), func.count(case((Agent.seen_at < seen_before, 1)))).where(*MACHINES)
    ).one()
    return agents, silent


def take(session: Session, agent_id: str, counts: Counts, *, now: float) -> bool:
    """Keep what a server below tells; False for an older serial, which changes nothing.

    Raises RefusedError 403: this is an agent, not a server.
    """
    agent = session.get(Agent, agent_id)
    if agent is None or agent.revoked_at is not None or agent.role != "server":
        raise RefusedError(
            "only a server tells counts; enrol this one as a server",
            status=403,
            code="not_a_server",
        )
    agent.seen_at = max(agent.seen_at, now)
    row = session.get(UpstreamCounts, agent_id)
    if row is not None and counts.serial <= row.serial:
        return False
    session.merge(
        UpstreamCounts(
            agent_id=agent_id,
            serial=counts.serial,
            received_at=now,
            counts=msgspec.to_builtins(counts),
        )
    )
    return True


def _numbers(found: dict[str, int], keys_max: int) -> dict[str, int]:
    """The largest, where there are more than may be told."""
    kept = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:keys_max]
    return {key: min(count, COUNT_MAX) for key, count in kept}


def _tables(found: dict[str, dict[str, int]], keys_max: int) -> dict[str, dict[str, int]]:
    kept = sorted(found.items(), key=lambda item: (-sum(item[1].values()), item[0]))[:KEYS_MAX]
    return {key: _numbers(numbers, keys_max) for key, numbers in kept}
