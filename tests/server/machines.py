"""Machines that the tests enrol."""

from __future__ import annotations

from typing import Any

from feed.messages import CheckIn, Enrolled, EnrolRequest, Facts, Report
from server.accounts import access, enrolment
from server.accounts.credentials import AgentIdentity
from server.storage.database import Database

NOW = 1_800_000_000.0
CHECK_IN_S = 300.0


def facts(number: int = 0, **changes: Any) -> Facts:
    """What machine `number` says about itself."""
    said: dict[str, Any] = {
        "host_id": f"host-{number}",
        "name": f"machine-{number:05}",
        "platform": "linux-x86_64",
        "agent_version": "1.2.0",
        "traits": {"scan": "smart"},
        "active_release": "2026.11.1",
        "components": {"virus-pattern": "173", "scan-engine": "12.500"},
        "state": "idle",
    }
    return Facts(**said | changes)


def token(database: Database, *, now: float = NOW, **options: Any) -> str:
    """An enrolment token."""
    return database.write_blocking(
        lambda session: access.issue(session, kind="enrol", name="some", now=now, **options)
    )


def enrolled(
    database: Database,
    number: int = 0,
    *,
    with_token: str | None = None,
    now: float = NOW,
    role: Any = "agent",
    **changes: Any,
) -> Enrolled:
    """Machine `number`, enrolled."""
    text = with_token or token(database, now=now, role=role)
    request = EnrolRequest(facts=facts(number, **changes), role=role)
    return database.write_blocking(
        lambda session: enrolment.enrol(session, text, request, now=now, check_in_s=CHECK_IN_S)
    )


def identity(agent: Enrolled) -> AgentIdentity:
    return AgentIdentity(agent.agent_id, "agent", agent.group)


def check_in(number: int = 0, *, heard: int = 0, **changes: Any) -> CheckIn:
    return CheckIn(facts=facts(number, **changes), heard_round=heard)


def report(attempt: str, outcome: Any = "committed", **changes: Any) -> Report:
    said: dict[str, Any] = {"release": "2026.11.1", "ended": NOW}
    return Report(attempt=attempt, outcome=outcome, **said | changes)
