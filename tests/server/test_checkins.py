"""Check-ins are written together, answered one by one, and change only what changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.orm import Session

from feed.messages import CheckIn, CheckInReply, Enrolled
from server.accounts.credentials import AgentIdentity
from server.errors import RefusedError, StorageError
from server.fleet import agents, checkins
from server.fleet.checkins import Arrival, CheckIns, record
from server.settings import Policy
from server.storage.database import Database
from server.storage.tables import Agent, AgentComponent, Round
from tests.server.machines import NOW, check_in, enrolled, identity, token

LATER = NOW + 300


def come(
    database: Database, *said: tuple[Enrolled, CheckIn], now: float = LATER
) -> list[CheckInReply | BaseException]:
    """The answers to check-ins that come at once."""

    async def ask() -> list[CheckInReply | BaseException]:
        taking = CheckIns(database, lambda: Policy(check_in_s=120.0))
        asked = (taking.take(identity(agent), what, now=now) for agent, what in said)
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(ask())


def row(database: Database, agent: Enrolled) -> Agent:
    found = database.read_blocking(lambda session: session.get(Agent, agent.agent_id))
    assert found is not None
    return found


def components(database: Database, agent: Enrolled) -> dict[str, str]:
    rows = database.read_blocking(
        lambda session: session.execute(
            select(AgentComponent.component, AgentComponent.version).where(
                AgentComponent.agent_id == agent.agent_id
            )
        ).all()
    )
    return {row[0]: row[1] for row in rows}


def fleet(database: Database, count: int) -> list[Enrolled]:
    with_token = token(database)
    return [enrolled(database, number, with_token=with_token) for number in range(count)]


def rounds(database: Database, count: int) -> None:
    def add(session: Session) -> None:
        for _ in range(count):
            session.add(Round(created_at=NOW, window_s=1.0, cause="release", by=""))
            session.flush()

    database.write_blocking(add)


def revoke(database: Database, agent: Enrolled) -> None:
    database.write_blocking(lambda s: agents.revoke(s, agent.agent_id, now=NOW, by="ada"))


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """What is executed on the writer's connection."""
    seen: list[str] = []

    def note(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    event.listen(database._writing, "before_cursor_execute", note)
    yield seen
    event.remove(database._writing, "before_cursor_execute", note)


def test_a_check_in_leaves_what_was_said(database: Database) -> None:
    (agent,) = fleet(database, 1)
    said = check_in(
        0,
        name="renamed",
        agent_version="1.3.0",
        region="japan",
        traits={"scan": "conventional"},
        active_release="2026.11.2",
        components={"virus-pattern": "175", "cleanup": "9.1"},
        state="trial",
        reason="new_release",
    )
    assert come(database, (agent, said)) == [CheckInReply(round=0, look=False, check_in_s=120.0)]
    kept = row(database, agent)
    facts = said.facts
    for name in ("name", "agent_version", "region", "traits", "active_release", "state", "reason"):
        assert getattr(kept, name) == getattr(facts, name)
    assert kept.seen_at == LATER
    assert components(database, agent) == {"virus-pattern": "175", "cleanup": "9.1"}


def test_the_same_again_changes_only_the_time(database: Database) -> None:
    (agent,) = fleet(database, 1)
    with statements(database) as seen:
        come(database, (agent, check_in(0)))
    changing = [one for one in seen if one.startswith(("UPDATE", "INSERT", "DELETE"))]
    assert len(changing) == 1
    assert "SET seen_at" in changing[0]
    assert "facts_digest" not in changing[0]
    assert row(database, agent).seen_at == LATER


def test_components_are_untouched_when_something_else_changed(database: Database) -> None:
    (agent,) = fleet(database, 1)
    with statements(database) as seen:
        come(database, (agent, check_in(0, state="downloading")))
    assert not [one for one in seen if "agent_components" in one and not one.startswith("SELECT")]
    assert row(database, agent).state == "downloading"
    assert len(components(database, agent)) == 2


def test_many_check_ins_share_a_transaction(database: Database) -> None:
    machines = fleet(database, 40)
    with statements(database) as seen:
        answers = come(database, *[(agent, check_in(n)) for n, agent in enumerate(machines)])
    assert len(answers) == 40
    assert all(isinstance(answer, CheckInReply) for answer in answers)
    assert sum(one.startswith("UPDATE") for one in seen) == 1
    assert {row(database, agent).seen_at for agent in machines} == {LATER}


def test_each_agent_is_told_to_look_until_it_has_answered(database: Database) -> None:
    first, second = fleet(database, 2)
    rounds(database, 3)
    answers = come(database, (first, check_in(0, heard=3)), (second, check_in(1, heard=2)))
    assert answers == [
        CheckInReply(round=3, look=False, check_in_s=120.0),
        CheckInReply(round=3, look=True, check_in_s=120.0),
    ]
    assert [row(database, agent).answered_round for agent in (first, second)] == [3, 2]


def test_an_answer_is_never_taken_back_nor_given_in_advance(database: Database) -> None:
    (agent,) = fleet(database, 1)
    rounds(database, 2)
    come(database, (agent, check_in(0, heard=1 << 53)))
    assert row(database, agent).answered_round == 0
    come(database, (agent, check_in(0, heard=2)))
    come(database, (agent, check_in(0, heard=0)))
    assert row(database, agent).answered_round == 2
    rounds(database, 1)
    (answer,) = come(database, (agent, check_in(0, heard=2)))
    assert isinstance(answer, CheckInReply)
    assert answer.look


def test_after_a_restored_backup_agents_look_though_they_heard_of_later_rounds(
    database: Database,
) -> None:
    (agent,) = fleet(database, 1)
    rounds(database, 3)
    (answer,) = come(database, (agent, check_in(0, heard=500)))
    assert answer == CheckInReply(round=3, look=True, check_in_s=120.0)
    (answer,) = come(database, (agent, check_in(0, heard=3)))
    assert answer == CheckInReply(round=3, look=False, check_in_s=120.0)


def test_an_agent_that_comes_twice_at_once_is_left_as_it_said_last(database: Database) -> None:
    (agent,) = fleet(database, 1)
    rounds(database, 1)
    for states in (("downloading", "trial"), ("trial", "idle"), ("idle", "idle")):
        said = [(agent, check_in(0, state=state, heard=1 - n)) for n, state in enumerate(states)]
        assert all(isinstance(answer, CheckInReply) for answer in come(database, *said))
        kept = row(database, agent)
        assert (kept.state, kept.answered_round) == (states[-1], 1)


def test_back_to_what_was_stored_within_one_transaction_is_kept(database: Database) -> None:
    (agent,) = fleet(database, 1)
    other = check_in(0, components={"virus-pattern": "175"})
    come(database, (agent, other), (agent, check_in(0)))
    assert components(database, agent) == check_in(0).facts.components


def test_a_revoked_agent_is_refused_and_the_others_are_served(database: Database) -> None:
    first, second = fleet(database, 2)
    revoke(database, first)
    refused, served = come(database, (first, check_in(0)), (second, check_in(1)))
    assert isinstance(refused, RefusedError)
    assert (refused.status, refused.code) == (401, "token_refused")
    assert isinstance(served, CheckInReply)
    assert row(database, first).seen_at == NOW


def test_one_agent_does_not_speak_for_another(database: Database) -> None:
    """Whose row is written is the credential's say; a foreign host id is refused."""
    first, second = fleet(database, 2)
    foreign = check_in(1, state="hijacked")
    refused, served = come(database, (first, foreign), (second, check_in(1)))
    assert isinstance(refused, RefusedError)
    assert (refused.status, refused.code) == (409, "other_machine")
    assert isinstance(served, CheckInReply)
    assert [row(database, agent).state for agent in (first, second)] == ["idle", "idle"]
    assert row(database, first).host_id == "host-0"


def test_an_unknown_agent_is_refused(database: Database) -> None:
    nobody = Enrolled(agent_id="0" * 32, credential="", group="default", check_in_s=1)
    (refused,) = come(database, (nobody, check_in(0)))
    assert isinstance(refused, RefusedError)


def test_what_cannot_be_stored_is_one_agents_fault(database: Database) -> None:
    if database.url.get_backend_name() == "sqlite":
        pytest.skip("SQLite stores it")
    first, second, third = fleet(database, 3)
    said = [(first, check_in(0)), (second, check_in(1, name="a\0b")), (third, check_in(2))]
    served, refused, also = come(database, *said)
    assert isinstance(served, CheckInReply)
    assert isinstance(also, CheckInReply)
    assert isinstance(refused, RefusedError)
    assert refused.status == 400


def test_a_database_that_fails_is_told_to_all_and_the_next_are_served(database: Database) -> None:
    machines = fleet(database, 3)
    said = [(agent, check_in(n)) for n, agent in enumerate(machines)]

    async def ask() -> None:
        taking = CheckIns(database, Policy)
        write = database.write

        async def broken(work: Callable[[Session], object]) -> object:
            return await write(lambda session: session.execute(text("SELECT * FROM nowhere")))

        database.write = broken  # type: ignore[method-assign,assignment]
        asked = (taking.take(identity(agent), what, now=LATER) for agent, what in said)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(answer) for answer in answers] == [StorageError] * 3
        database.write = write  # type: ignore[method-assign]
        assert await taking.take(identity(machines[0]), check_in(0), now=LATER)

    asyncio.run(ask())


def test_a_flood_is_refused_with_when_to_come_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkins, "WAITING_MAX", 5)
    machines = fleet(database, 1) * 50
    answers = come(database, *[(agent, check_in(0)) for agent in machines])
    refused = [answer for answer in answers if isinstance(answer, RefusedError)]
    assert len(refused) == 45
    assert {(error.status, error.code) for error in refused} == {(503, "overloaded")}
    assert all(error.retry_after_s for error in refused)


def test_one_that_went_away_leaves_the_others_served(database: Database) -> None:
    first, second = fleet(database, 2)

    async def ask() -> None:
        taking = CheckIns(database, Policy)
        left = asyncio.ensure_future(taking.take(identity(first), check_in(0), now=LATER))
        stays = asyncio.ensure_future(taking.take(identity(second), check_in(1), now=LATER))
        await asyncio.sleep(0)
        left.cancel()
        assert (await stays).check_in_s == Policy().check_in_s
        assert await taking.take(identity(first), check_in(0), now=LATER)

    asyncio.run(ask())


def test_answers_come_in_the_order_of_arrivals(database: Database) -> None:
    machines = fleet(database, 3)
    revoke(database, machines[1])
    arrivals = [Arrival(agent.agent_id, check_in(n), LATER) for n, agent in enumerate(machines)]
    answers = database.write_blocking(lambda s: record(s, arrivals * 2, check_in_s=1.0))
    assert [isinstance(answer, CheckInReply) for answer in answers] == [True, False, True] * 2


def test_an_identity_is_the_credentials(database: Database) -> None:
    (agent,) = fleet(database, 1)
    assert identity(agent) == AgentIdentity(agent.agent_id, "agent", "default")
