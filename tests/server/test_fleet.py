"""Groups, the list of machines, what they need, and the numbers that go upstream."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from sqlalchemy.orm import Session

from feed.messages import Counts
from server.accounts import audit
from server.errors import RefusedError
from server.fleet import agents, counts, groups, needs, reports
from server.fleet.agents import Page, Wanted
from server.storage.database import Database
from server.web import lookups
from tests.server.machines import NOW, enrolled, report, token

SILENT_AFTER_S = 3600.0


def create(database: Database, name: str) -> None:
    database.write_blocking(lambda session: groups.create(session, name, now=NOW, by="ada"))


def status(work: Callable[[], object]) -> int:
    with pytest.raises(RefusedError) as caught:
        work()
    return caught.value.status


def sizes(database: Database) -> dict[str, int]:
    return {view.name: view.agents for view in database.read_blocking(groups.listed)}


def page(database: Database, wanted: Wanted = Wanted(), **options: object) -> Page:  # noqa: B008
    asked = {"now": NOW, "silent_after_s": SILENT_AFTER_S} | options
    return database.read_blocking(lambda s: agents.page(s, wanted, **asked))  # type: ignore[arg-type]


def names(found: Page) -> list[str]:
    return [agent.name for agent in found.agents]


def test_there_is_always_a_default_group(database: Database) -> None:
    assert sizes(database) == {"default": 0}
    remove = lambda: database.write_blocking(  # noqa: E731
        lambda s: groups.remove(s, "default", now=NOW, by="ada")
    )
    assert status(remove) == 409


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a" * 65, "a\n", "ä", "a\0", "../a"])
def test_a_name_that_cannot_be_one_is_refused(database: Database, name: str) -> None:
    assert status(lambda: create(database, name)) == 400
    assert status(lambda: database.read_blocking(lambda s: groups.found(s, name))) == 404


def test_a_group_is_made_once(database: Database) -> None:
    create(database, "lab")
    assert status(lambda: create(database, "lab")) == 409
    assert sizes(database) == {"default": 0, "lab": 0}


def test_a_group_in_use_is_not_removed(database: Database) -> None:
    def remove(name: str) -> None:
        database.write_blocking(lambda s: groups.remove(s, name, now=NOW, by="ada"))

    create(database, "lab")
    create(database, "named")
    create(database, "empty")
    agent = enrolled(database)
    database.write_blocking(
        lambda s: agents.move(s, [agent.agent_id], group="lab", now=NOW, by="ada")
    )
    token(database, group="named")
    assert [status(lambda: remove("lab")), status(lambda: remove("named"))] == [409, 409]
    remove("empty")
    assert status(lambda: remove("empty")) == 404
    database.write_blocking(lambda s: agents.revoke(s, agent.agent_id, now=NOW, by="ada"))
    remove("lab")
    assert set(sizes(database)) == {"default", "named"}


def test_moving_one_that_is_missing_moves_none(database: Database) -> None:
    create(database, "lab")
    agent = enrolled(database)

    def move(ids: list[str], group: str) -> None:
        database.write_blocking(lambda s: agents.move(s, ids, group=group, now=NOW, by="ada"))

    assert status(lambda: move([agent.agent_id, "f" * 32], "lab")) == 404
    assert status(lambda: move([agent.agent_id], "nowhere")) == 404
    assert sizes(database) == {"default": 1, "lab": 0}
    move([agent.agent_id], "lab")
    assert sizes(database) == {"default": 0, "lab": 1}
    newest = database.read_blocking(audit.recent)[0]
    assert newest.detail == {"agent": agent.agent_id, "from": "default", "to": "lab"}


@pytest.mark.parametrize("agent_id", ["", "f" * 32, "x\0", "é" * 32, "../..", "F" * 32])
def test_an_agent_that_is_missing_is_missing(database: Database, agent_id: str) -> None:
    def revoke(session: Session) -> None:
        agents.revoke(session, agent_id, now=NOW, by="ada")

    assert status(lambda: database.write_blocking(revoke)) == 404
    assert (
        status(
            lambda: database.read_blocking(
                lambda s: agents.show(s, agent_id, now=NOW, silent_after_s=60.0)
            )
        )
        == 404
    )


def test_pages_follow_each_other_without_gap_or_repetition(database: Database) -> None:
    text = token(database)
    for number in range(7):
        name = f"twin-{number // 2}"  # names aren't unique
        enrolled(database, number, with_token=text, name=name)
    seen: list[str] = []
    after = None
    while True:
        found = page(database, limit=2, after=after)
        seen += [agent.id for agent in found.agents]
        after = found.after
        if after is None:
            break
        assert len(found.agents) == 2
    assert len(seen) == len(set(seen)) == 7
    assert names(page(database)) == sorted(names(page(database)))


@pytest.mark.parametrize("after", ["", "x", "e30=", "bnVsbA==", "\0", "é", "W10=", "[[["])
def test_a_cursor_of_ones_own_making_is_refused(database: Database, after: str) -> None:
    assert status(lambda: page(database, after=after)) == 400


def test_the_list_is_filtered(database: Database) -> None:
    create(database, "lab")
    text = token(database)
    enrolled(database, 0, with_token=text, name="current")
    enrolled(database, 1, with_token=text, name="old", active_release="2026.10.9")
    enrolled(database, 2, with_token=text, name="none", active_release=None)
    quiet = enrolled(database, 3, with_token=text, name="quiet", now=NOW - SILENT_AFTER_S - 1)
    gone = enrolled(database, 4, with_token=text, name="gone")
    enrolled(database, 5, name="below", role="server")
    for agent_id in (quiet.agent_id,):
        database.write_blocking(
            lambda s, which=agent_id: agents.move(s, [which], group="lab", now=NOW, by="ada")  # type: ignore[misc]
        )
    database.write_blocking(lambda s: agents.revoke(s, gone.agent_id, now=NOW, by="ada"))
    current = ("2026.11.1", "2026.11.2")

    def found(**wanted: object) -> list[str]:
        return names(page(database, Wanted(**wanted), current=current))  # type: ignore[arg-type]

    assert found() == ["below", "current", "none", "old", "quiet"]
    assert found(revoked=True) == ["gone"]
    assert found(group="lab") == ["quiet"]
    assert found(release="2026.10.9") == ["old"]
    assert found(silent=True) == ["quiet"]
    assert found(silent=False, role="agent") == ["current", "none", "old"]
    assert found(outdated=True) == ["none", "old"]
    assert found(outdated=False, role="agent") == ["current", "quiet"]
    assert names(page(database, Wanted(outdated=True))) == []


def test_silence_is_shown_with_when_it_began(database: Database) -> None:
    agent = enrolled(database, now=NOW - SILENT_AFTER_S - 100)
    (view,) = page(database).agents
    assert view.silent_since == NOW - 100
    database.write_blocking(lambda s: agents.revoke(s, agent.agent_id, now=NOW, by="ada"))
    (view,) = page(database, Wanted(revoked=True)).agents
    assert view.silent_since is None


def test_a_machine_is_shown_in_full_and_without_credentials(database: Database) -> None:
    agent = enrolled(database, components={"b": "2", "a": "1"})
    detail = database.read_blocking(
        lambda s: agents.show(s, agent.agent_id, now=NOW, silent_after_s=60.0)
    )
    assert detail.components == {"a": "1", "b": "2"}
    assert not {"credential", "next_credential"} & set(msgspec.to_builtins(detail))


def below(database: Database, told: Counts, *, now: float = NOW) -> str:
    server = enrolled(database, 1000, role="server", name="site", components={}, now=now)
    database.write_blocking(lambda s: counts.take(s, server.agent_id, told, now=now))
    return server.agent_id


COUNTS = Counts(
    serial=7,
    agents=10,
    silent=1,
    releases={"2026.11.1": 9},
    versions={"virus-pattern": {"173": 4, "171": 6}},
    outcomes={"2026.11.1": {"committed": 9}},
)


def test_the_fleet_needs_what_it_runs_silent_machines_and_servers_below_included(
    database: Database,
) -> None:
    text = token(database)
    enrolled(database, 0, with_token=text, components={"virus-pattern": "173"})
    enrolled(database, 1, with_token=text, components={"virus-pattern": "175"}, now=NOW - 1e6)
    gone = enrolled(database, 2, with_token=text, components={"virus-pattern": "161"})
    database.write_blocking(lambda s: agents.revoke(s, gone.agent_id, now=NOW, by="ada"))
    assert database.read_blocking(needs.versions) == {"virus-pattern": {"173": 1, "175": 1}}
    server = below(database, COUNTS)
    assert database.read_blocking(needs.versions) == {
        "virus-pattern": {"173": 5, "175": 1, "171": 6}
    }
    recent = database.read_blocking(lambda s: needs.versions(s, seen_since=NOW - 10))
    assert recent == {"virus-pattern": {"173": 5, "171": 6}}
    database.write_blocking(lambda s: agents.revoke(s, server, now=NOW, by="ada"))
    assert database.read_blocking(needs.versions) == {"virus-pattern": {"173": 1, "175": 1}}


def build(database: Database) -> Counts:
    return database.write_blocking(
        lambda s: counts.build(s, now=NOW, silent_after_s=SILENT_AFTER_S)
    )


def test_counts_are_numbers_of_the_whole_fleet_and_name_no_machine(database: Database) -> None:
    text = token(database)
    agent = enrolled(database, 0, with_token=text, name="secret-name", host_id="secret-host")
    enrolled(database, 1, with_token=text, now=NOW - SILENT_AFTER_S - 1, active_release=None)
    told = reports.Reports(reports=(report("a"),))
    database.write_blocking(lambda s: reports.take(s, agent.agent_id, told, now=NOW))
    below(database, COUNTS)
    made = build(database)
    assert (made.agents, made.silent) == (12, 2)
    assert made.releases == {"2026.11.1": 10}
    assert made.versions["virus-pattern"] == {"173": 6, "171": 6}
    assert made.outcomes == {"2026.11.1": {"committed": 10}}
    wire = msgspec.json.encode(made)
    assert b"secret" not in wire
    assert agent.agent_id.encode() not in wire
    assert msgspec.json.decode(wire, type=Counts) == made


def test_each_counts_has_the_next_serial(database: Database) -> None:
    assert [build(database).serial for _ in range(3)] == [1, 2, 3]


def test_counts_stay_within_what_may_be_told(database: Database) -> None:
    text = token(database)
    many = {f"c{number}": "1" for number in range(256)}
    enrolled(database, 0, with_token=text, components=many)
    enrolled(database, 1, with_token=text, components=many | {"c0": "2"})
    below(
        database,
        Counts(serial=1, agents=1 << 53, silent=0, versions={"other": {"1": 1 << 53}}),
    )
    made = build(database)
    assert len(made.versions) == 256
    assert made.versions["other"] == {"1": 1 << 53}
    assert msgspec.json.decode(msgspec.json.encode(made), type=Counts) == made


def test_a_replayed_or_older_count_changes_nothing(database: Database) -> None:
    server = below(database, COUNTS)
    older = msgspec.structs.replace(COUNTS, serial=6, agents=99)
    again = msgspec.structs.replace(COUNTS, agents=99)
    newer = msgspec.structs.replace(COUNTS, serial=8, agents=11)

    def take(told: Counts) -> bool:
        return database.write_blocking(lambda s: counts.take(s, server, told, now=NOW))

    assert [take(older), take(again), take(newer)] == [False, False, True]
    assert build(database).agents == 11


def test_an_agent_tells_no_counts(database: Database) -> None:
    agent = enrolled(database)

    def take(session: Session) -> bool:
        return counts.take(session, agent.agent_id, COUNTS, now=NOW)

    assert status(lambda: database.write_blocking(take)) == 403


def test_a_server_below_is_no_machine_and_never_silent(database: Database) -> None:
    """It tells counts once an hour, which says nothing about a machine."""
    enrolled(database, 0)
    enrolled(database, 1, role="server")
    later = NOW + 2 * SILENT_AFTER_S
    told = database.read_blocking(
        lambda session: lookups.fleet(session, now=later, silent_after_s=SILENT_AFTER_S)
    )
    assert (told.enrolled, told.silent, told.states) == (1, 1, {"idle": 1})
    assert names(page(database, Wanted(silent=True), now=later)) == ["machine-00000"]
    assert names(page(database, Wanted(silent=False), now=later)) == ["machine-00001"]
    (below,) = page(database, Wanted(role="server"), now=later).agents
    assert below.silent_since is None
