"""What the server has acknowledged is there after SIGKILL, and nothing is half."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from server.storage.database import Database
from server.storage.tables import Agent, AgentComponent, AgentReport, Round
from tests.server.machines import NOW, enrolled, token
from tests.server.orders import Ack, Busy, Orders, taking

KILLS = 5
AGENTS = 8


@pytest.fixture(scope="module")
def orders() -> Iterator[Orders]:
    with taking() as made:
        yield made


def missing(session: Session, heard: list[Ack]) -> list[Ack]:
    """What was acknowledged and isn't there."""
    seen = {row[0]: row[1] for row in session.execute(select(Agent.id, Agent.seen_at))}
    told = {
        tuple(row) for row in session.execute(select(AgentReport.agent_id, AgentReport.attempt))
    }
    rounds = set(session.scalars(select(Round.id)))

    def kept(ack: Ack) -> bool:
        if ack.kind == "check-in":
            return seen[ack.agent_id] >= NOW + ack.n
        if ack.kind == "report":
            return (ack.agent_id, f"a{ack.n}") in told
        return ack.n in rounds

    return [ack for ack in heard if not kept(ack)]


def torn(session: Session) -> list[str]:
    """Agents whose row and components are of different check-ins."""
    rows = session.execute(
        select(Agent.id, Agent.state, Agent.seen_at, AgentComponent.version).join(AgentComponent)
    )
    return [
        agent_id
        for agent_id, state, seen_at, version in rows
        if not (state == version and seen_at == NOW + int(version))
    ]


def after_restart(url: str, heard: list[Ack]) -> tuple[list[Ack], list[str]]:
    database = Database(url)
    try:
        database.migrate()
        return database.read_blocking(lambda s: (missing(s, heard), torn(s)))
    finally:
        database.close()


def test_nothing_acknowledged_is_lost_and_nothing_is_half(
    database_url: str, tmp_path: Path, orders: Orders
) -> None:
    database = Database(database_url)
    text = token(database)
    agents = {
        enrolled(
            database, number, with_token=text, now=NOW, state="0", components={"virus-pattern": "0"}
        ).agent_id: number
        for number in range(AGENTS)
    }
    database.close()
    chance = random.Random(1)
    heard: list[Ack] = []
    for kill in range(1, KILLS + 1):
        path = tmp_path / f"heard-{kill}"
        busy = Busy(
            url=database_url,
            heard=str(path),
            agents=agents,
            start=kill * 10_000,
            die_after=chance.randrange(1, 200),
            moment_s=chance.random() * 0.02,
        )
        assert orders.run(busy) == -9
        heard += [msgspec.json.decode(line, type=Ack) for line in path.read_bytes().splitlines()]
        assert after_restart(database_url, heard) == ([], [])
    counted = Counter(ack.kind for ack in heard)
    assert min(counted[kind] for kind in ("check-in", "report", "round")) >= KILLS
