"""A token opens what it is for, as long and as often as it may, and nothing else."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable

import msgspec
import pytest
from sqlalchemy import select
from sqlalchemy import text as sql
from sqlalchemy.orm import Session

from feed.messages import EnrolRequest, Reports
from server.accounts import access, audit, enrolment, policy, setup, tokens
from server.accounts.credentials import AgentIdentity, Credentials
from server.errors import RefusedError, StorageError
from server.fleet import agents, groups, reports
from server.settings import Policy
from server.storage.database import Database
from server.storage.tables import Agent, AgentComponent, AgentReport, Setting, Token
from tests.server.machines import CHECK_IN_S, NOW, enrolled, facts, report, token


def administrator(database: Database, name: str = "ada", **options: float) -> str:
    return database.write_blocking(
        lambda session: access.issue(session, kind="admin", name=name, now=NOW, **options)
    )


def who(database: Database, text: str, *, now: float = NOW) -> str:
    return database.read_blocking(lambda session: access.administrator(session, text, now=now))


def identity_of(text: str) -> str:
    parsed = tokens.parse(text)
    assert parsed is not None
    return parsed.id


def refused(work: Callable[[], object]) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        work()
    return caught.value


def another_secret(text: str) -> str:
    parsed = tokens.parse(text)
    assert parsed is not None
    return tokens.make(parsed.kind, id_bytes=bytes.fromhex(parsed.id), secret_bytes=b"x" * 32)


def test_an_administrators_token_says_who_it_is(database: Database) -> None:
    assert who(database, administrator(database, "ada")) == "ada"


def test_every_token_that_is_no_good_is_refused_alike(database: Database) -> None:
    good = administrator(database)
    expired = administrator(database, "eve", expires_at=NOW + 10)
    revoked = administrator(database, "rob")
    database.write_blocking(
        lambda session: access.revoke(session, identity_of(revoked), now=NOW, by="ada")
    )
    unknown = tokens.make("admin", id_bytes=b"u" * 16, secret_bytes=b"u" * 32)
    enrolment_token, agent = token(database), enrolled(database).credential
    wrong = another_secret(good)
    answers = {
        (error.status, error.code, str(error))
        for text in (expired, revoked, unknown, wrong, enrolment_token, agent, "", "x" * 99)
        if (error := refused(lambda text=text: who(database, text, now=NOW + 10)))  # type: ignore[misc]
    }
    assert answers == {(401, "token_refused", "the token isn't valid here")}
    assert who(database, good, now=NOW + 10) == "ada"
    assert who(database, expired, now=NOW + 9.9) == "eve"


def test_the_secret_is_nowhere_in_the_database(database: Database) -> None:
    texts = [administrator(database), token(database), enrolled(database).credential]
    texts.append(database.write_blocking(lambda s: setup.prepare(s, now=NOW)) or "")
    stored = ""
    for name in Token.metadata.tables:
        rows = database.read_blocking(
            lambda session, name=name: session.execute(sql(f'SELECT * FROM "{name}"')).all()  # type: ignore[misc]
        )
        stored += repr(rows)
    for text in filter(None, texts):
        parsed = tokens.parse(text)
        assert parsed is not None
        assert parsed.secret not in stored


def test_no_secret_is_in_an_exception_or_a_log(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    text = token(database, expires_at=NOW + 1)
    agent = enrolled(database)
    request = EnrolRequest(facts=facts())

    def enrol(session: Session) -> object:
        return enrolment.enrol(session, text, request, now=NOW + 2, check_in_s=CHECK_IN_S)

    error = refused(lambda: database.write_blocking(enrol))
    told = "".join(traceback.format_exception(error)) + caplog.text + repr(agent)
    told += repr(database.write_blocking(lambda s: enrolment.rotate(s, agent.agent_id)))
    told += repr(Credentials(database).__dict__)
    for secret in (text, agent.credential):
        assert secret.split("_", 2)[2] not in told


def test_a_token_is_listed_without_its_secret(database: Database) -> None:
    text = token(database, uses=3, expires_at=NOW + 60)
    (view,) = database.read_blocking(lambda session: access.listed(session, now=NOW))
    assert (view.id, view.kind, view.uses_left, view.usable) == (
        identity_of(text),
        "enrol",
        3,
        True,
    )
    assert "digest" not in access.TokenView.__struct_fields__
    (later,) = database.read_blocking(lambda session: access.listed(session, now=NOW + 60))
    assert not later.usable


def test_the_last_administrator_is_not_revoked(database: Database) -> None:
    first, second = administrator(database, "ada"), administrator(database, "bob")

    def revoke(text: str) -> None:
        database.write_blocking(
            lambda session: access.revoke(session, identity_of(text), now=NOW, by="ada")
        )

    revoke(second)
    revoke(second)
    error = refused(lambda: revoke(first))
    assert (error.status, error.code) == (409, "last_administrator")
    assert who(database, first) == "ada"


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"kind": "admin", "name": ""}, 400),
        ({"kind": "admin", "name": "a\nb"}, 400),
        ({"kind": "admin", "name": "a\0b"}, 400),
        ({"kind": "admin", "name": "x" * 256}, 400),
        ({"kind": "admin", "name": "ada"}, 409),
        ({"kind": "admin", "name": "bob", "uses": 1}, 400),
        ({"kind": "admin", "name": "bob", "group": "default"}, 400),
        ({"kind": "admin", "name": "bob", "expires_at": NOW}, 400),
        ({"kind": "enrol", "name": "bob", "uses": 0}, 400),
        ({"kind": "enrol", "name": "bob", "uses": 1 << 70}, 400),
        ({"kind": "enrol", "name": "bob", "group": "nowhere"}, 404),
        ({"kind": "enrol", "name": "bob", "group": "../x"}, 400),
    ],
)
def test_a_token_that_makes_no_sense_is_not_made(
    database: Database, options: dict[str, object], status: int
) -> None:
    administrator(database, "ada")
    error = refused(
        lambda: database.write_blocking(
            lambda session: access.issue(session, now=NOW, **options)  # type: ignore[arg-type]
        )
    )
    assert error.status == status


def test_serverctl_gets_a_fresh_token_and_the_one_before_ends(database: Database) -> None:
    first = database.write_blocking(lambda session: access.local(session, now=NOW))
    second = database.write_blocking(lambda session: access.local(session, now=NOW))
    assert who(database, second) == access.LOCAL
    assert refused(lambda: who(database, first)).status == 401


def test_an_enrolment_token_is_good_for_as_many_machines_as_it_says(database: Database) -> None:
    text = token(database, uses=2)
    ids = {enrolled(database, number, with_token=text).agent_id for number in range(2)}
    assert len(ids) == 2
    error = refused(lambda: enrolled(database, 2, with_token=text))
    assert (error.status, error.code) == (401, "token_refused")


def test_a_race_for_the_last_use_is_won_once(database: Database) -> None:
    text = token(database, uses=1)

    def enrol(number: int) -> Callable[[Session], object]:
        request = EnrolRequest(facts=facts(number))
        return lambda session: enrolment.enrol(
            session, text, request, now=NOW, check_in_s=CHECK_IN_S
        )

    async def race() -> list[object]:
        asked = (database.write(enrol(number)) for number in range(20))
        return await asyncio.gather(*asked, return_exceptions=True)

    outcomes = asyncio.run(race())
    assert sum(isinstance(outcome, RefusedError) for outcome in outcomes) == 19


def test_an_enrolment_that_is_refused_spends_nothing_and_makes_nothing(
    database: Database,
) -> None:
    text = token(database, uses=1, expires_at=NOW + 1)
    for bad in (another_secret(text), administrator(database)):
        assert refused(lambda bad=bad: enrolled(database, with_token=bad)).status == 401  # type: ignore[misc]
    assert refused(lambda: enrolled(database, with_token=text, now=NOW + 1)).status == 401
    listed = database.read_blocking(lambda session: access.listed(session, now=NOW))
    assert [view.uses_left for view in listed if view.kind == "enrol"] == [1]
    assert database.read_blocking(lambda session: session.query(Agent).count()) == 0


def test_a_revoked_enrolment_token_is_refused(database: Database) -> None:
    text = token(database)
    database.write_blocking(
        lambda session: access.revoke(session, identity_of(text), now=NOW, by="ada")
    )
    assert refused(lambda: enrolled(database, with_token=text)).status == 401


@pytest.mark.parametrize(("of", "wanted"), [("agent", "server"), ("server", "agent")])
def test_a_token_for_one_role_makes_none_of_the_other(
    database: Database, of: str, wanted: str
) -> None:
    text = token(database, role=of, uses=1)
    refusal = refused(lambda: enrolled(database, with_token=text, role=wanted))
    assert (refusal.status, refusal.code) == (403, "token_of_another_role")
    assert refusal.retry_after_s is None
    enrolled(database, with_token=text, role=of)  # its use wasn't spent
    assert database.read_blocking(lambda s: s.scalars(select(Agent.role)).all()) == [of]


def test_only_enrolment_tokens_are_for_servers(database: Database) -> None:
    def issue() -> None:
        database.write_blocking(
            lambda s: access.issue(s, kind="admin", name="ada", role="server", now=NOW)
        )

    assert refused(issue).status == 400


def test_an_enrolled_agent_is_in_the_group_of_its_token(database: Database) -> None:
    database.write_blocking(lambda session: groups.create(session, "lab", now=NOW, by="ada"))
    assert enrolled(database, with_token=token(database, group="lab")).group == "lab"
    assert enrolled(database, 1).group == enrolment.DEFAULT_GROUP


def test_who_ended_long_ago_is_forgotten_with_all_that_was_kept(database: Database) -> None:
    text, told = token(database), Reports(reports=(report("a"),))
    for days in (0, 1, 20, 40, 61):  # the same machine, again and again
        now = NOW + days * 86_400
        agent = enrolled(database, with_token=text, now=now)
        database.write_blocking(
            lambda s, who=agent.agent_id, now=now: reports.take(s, who, told, now=now)  # type: ignore[misc]
        )

    def left(session: Session) -> tuple[list[float], int, int]:
        enrolled_at = session.scalars(select(Agent.enrolled_at).order_by(Agent.enrolled_at)).all()
        components = session.scalars(select(AgentComponent.agent_id).distinct()).all()
        assert list(components) == [agent.agent_id]
        return list(enrolled_at), session.query(AgentReport).count(), len(components)

    ended, kept, _ = database.read_blocking(left)
    assert [(at - NOW) / 86_400 for at in ended] == [20, 40, 61]
    assert kept == 3


def test_serverctls_own_tokens_of_earlier_starts_are_gone(database: Database) -> None:
    texts = [database.write_blocking(lambda s: access.local(s, now=NOW)) for _ in range(3)]
    (view,) = database.read_blocking(lambda s: access.listed(s, now=NOW))
    assert (view.id, view.usable) == (identity_of(texts[-1]), True)


def ask(credentials: Credentials, text: str) -> AgentIdentity:
    return asyncio.run(credentials.agent(text))


def test_a_credential_says_whose_it_is_and_no_other(database: Database) -> None:
    credentials = Credentials(database)
    first, second = enrolled(database, 1), enrolled(database, 2)
    for _ in range(2):
        assert ask(credentials, first.credential).id == first.agent_id
        assert ask(credentials, second.credential).id == second.agent_id
    crossed = first.credential.replace(first.agent_id, second.agent_id)
    assert refused(lambda: ask(credentials, crossed)).code == "token_refused"


def test_everything_that_is_no_credential_is_refused(database: Database) -> None:
    credentials = Credentials(database)
    agent = enrolled(database)
    unknown = tokens.make("agent", id_bytes=b"u" * 16, secret_bytes=b"u" * 32)
    wrong = another_secret(agent.credential)
    for text in (unknown, wrong, token(database), administrator(database), "", "hfagt"):
        for _ in range(2):
            error = refused(lambda text=text: ask(credentials, text))  # type: ignore[misc]
            assert (error.status, error.code) == (401, "token_refused")


def test_a_revoked_credential_is_refused_from_then_on(database: Database) -> None:
    credentials = Credentials(database)
    agent = enrolled(database)
    ask(credentials, agent.credential)
    database.write_blocking(lambda s: agents.revoke(s, agent.agent_id, now=NOW, by="ada"))
    assert refused(lambda: ask(credentials, agent.credential)).status == 401
    assert refused(lambda: ask(Credentials(database), agent.credential)).status == 401


def test_a_revocation_during_a_look_up_is_not_overlooked(database: Database) -> None:
    credentials = Credentials(database)
    agent = enrolled(database)

    async def overtaken() -> None:
        read = database.read

        async def slow(work: Callable[[Session], object]) -> object:
            found = await read(work)
            await database.write(lambda s: agents.revoke(s, agent.agent_id, now=NOW, by="ada"))
            return found

        database.read = slow  # type: ignore[method-assign,assignment]
        await credentials.agent(agent.credential)
        database.read = read  # type: ignore[method-assign]
        with pytest.raises(RefusedError):
            await credentials.agent(agent.credential)

    asyncio.run(overtaken())


def test_a_machine_that_enrols_again_ends_its_earlier_credential(database: Database) -> None:
    credentials = Credentials(database)
    first, other = enrolled(database, 1), enrolled(database, 2)
    ask(credentials, first.credential)
    again = enrolled(database, 1)
    assert refused(lambda: ask(credentials, first.credential)).status == 401
    assert ask(credentials, again.credential).id == again.agent_id != first.agent_id
    assert ask(credentials, other.credential).id == other.agent_id


def test_without_a_good_token_nobody_ends_another_machines_credential(
    database: Database,
) -> None:
    agent = enrolled(database, 1)
    spent = token(database, uses=1)
    enrolled(database, 2, with_token=spent)
    assert refused(lambda: enrolled(database, 1, with_token=spent)).status == 401
    assert ask(Credentials(database), agent.credential).id == agent.agent_id


def rotated(database: Database, agent_id: str) -> str:
    return database.write_blocking(lambda s: enrolment.rotate(s, agent_id)).credential


def test_the_old_credential_holds_until_the_new_one_is_used(database: Database) -> None:
    credentials = Credentials(database)
    agent = enrolled(database)
    ask(credentials, agent.credential)
    new = rotated(database, agent.agent_id)
    assert ask(credentials, agent.credential).id == agent.agent_id
    assert ask(credentials, new).id == agent.agent_id
    assert refused(lambda: ask(credentials, agent.credential)).status == 401
    assert ask(credentials, new).id == agent.agent_id
    assert ask(Credentials(database), new).id == agent.agent_id


def test_a_credential_that_was_handed_out_and_replaced_unused_is_void(database: Database) -> None:
    credentials = Credentials(database)
    agent = enrolled(database)
    lost = rotated(database, agent.agent_id)
    new = rotated(database, agent.agent_id)
    assert refused(lambda: ask(credentials, lost)).status == 401
    assert ask(credentials, agent.credential).id == agent.agent_id
    assert ask(credentials, new).id == agent.agent_id


def test_a_new_credential_that_is_used_twice_at_once_is_taken_twice(database: Database) -> None:
    agent = enrolled(database)
    new = rotated(database, agent.agent_id)
    credentials = Credentials(database)

    async def both() -> list[AgentIdentity]:
        return await asyncio.gather(*[credentials.agent(new) for _ in range(5)])

    assert {who.id for who in asyncio.run(both())} == {agent.agent_id}


def test_a_revoked_agent_gets_no_new_credential(database: Database) -> None:
    agent = enrolled(database)
    database.write_blocking(lambda s: agents.revoke(s, agent.agent_id, now=NOW, by="ada"))
    assert refused(lambda: rotated(database, agent.agent_id)).status == 404


def test_a_next_credential_ends_with_its_agent(database: Database) -> None:
    agent = enrolled(database)
    new = rotated(database, agent.agent_id)
    database.write_blocking(lambda s: agents.revoke(s, agent.agent_id, now=NOW, by="ada"))
    assert refused(lambda: ask(Credentials(database), new)).status == 401


def test_few_credentials_are_remembered_and_all_are_known(database: Database) -> None:
    credentials = Credentials(database, kept_max=2)
    text = token(database)
    machines = [enrolled(database, number, with_token=text) for number in range(5)]
    for machine in machines * 2:
        assert ask(credentials, machine.credential).id == machine.agent_id


def prepare(database: Database, *, now: float = NOW) -> str | None:
    return database.write_blocking(lambda session: setup.prepare(session, now=now))


def complete(database: Database, text: str, *, now: float = NOW) -> str:
    return database.write_blocking(
        lambda session: setup.complete(session, text, name="ada", now=now)
    )


def test_set_up_makes_the_first_administrator_once(database: Database) -> None:
    text = prepare(database)
    assert text is not None
    assert who(database, complete(database, text)) == "ada"
    assert refused(lambda: complete(database, text)).status == 401
    assert prepare(database) is None


def test_a_start_makes_the_set_up_token_before_it_void(database: Database) -> None:
    first, second = prepare(database), prepare(database)
    assert first is not None
    assert second is not None
    assert refused(lambda: complete(database, first)).status == 401
    assert who(database, complete(database, second)) == "ada"


def test_a_set_up_token_expires(database: Database) -> None:
    text = prepare(database)
    assert text is not None
    assert refused(lambda: complete(database, text, now=NOW + setup.GOOD_S)).status == 401


def test_a_set_up_token_is_worth_nothing_once_there_is_an_administrator(
    database: Database,
) -> None:
    text = prepare(database)
    assert text is not None
    administrator(database, "bob")
    assert refused(lambda: complete(database, text)).status == 401
    assert refused(lambda: who(database, text)).status == 401


def test_serverctls_own_token_is_not_an_administrator_for_set_up(database: Database) -> None:
    database.write_blocking(lambda session: access.local(session, now=NOW))
    assert prepare(database) is not None


def test_the_policy_is_all_defaults_until_it_is_changed(database: Database) -> None:
    assert database.read_blocking(policy.load) == Policy()
    changed = Policy(check_in_s=60.0, distribute_automatically=False)
    database.write_blocking(lambda s: policy.store(s, changed, now=NOW, by="ada"))
    assert database.read_blocking(policy.load) == changed
    (entry,) = database.read_blocking(audit.recent)
    assert (entry.who, entry.action) == ("ada", "policy_changed")
    assert entry.detail == {"check_in_s": 60.0, "distribute_automatically": False}


def test_a_policy_out_of_range_is_refused_and_nothing_changes(database: Database) -> None:
    bad = msgspec.structs.replace(Policy(), notify_times=99)
    error = refused(
        lambda: database.write_blocking(lambda s: policy.store(s, bad, now=NOW, by="ada"))
    )
    assert error.status == 400
    assert "notify_times" in str(error)
    assert database.read_blocking(policy.load) == Policy()


def test_a_policy_of_a_newer_server_is_told_and_not_overwritten(database: Database) -> None:
    newer: dict[str, object] = {"check_in_s": 60.0, "moon_phase": "full"}
    database.write_blocking(lambda s: s.add(Setting(key=policy.KEY, value=newer, changed_at=NOW)))
    with pytest.raises(StorageError, match=r"moon_phase.*newer server"):
        database.read_blocking(policy.load)
    with pytest.raises(StorageError):
        database.write_blocking(lambda s: policy.store(s, Policy(), now=NOW, by="ada"))


def test_the_audit_is_paged_from_the_newest(database: Database) -> None:
    def notes(session: Session) -> None:
        for number in range(5):
            audit.note(session, who="ada", action="did", detail={"n": number}, now=NOW)
            session.flush()

    database.write_blocking(notes)
    seen: list[object] = []
    before: int | None = None
    while page := database.read_blocking(
        lambda session: audit.recent(session, limit=2, before_id=before)  # noqa: B023
    ):
        seen += [entry.detail["n"] for entry in page]
        before = page[-1].id
    assert seen == [4, 3, 2, 1, 0]
    assert database.read_blocking(lambda s: audit.recent(s, before_id=1 << 80)) != []
