"""Writes that share a transaction stand or fall alone until COMMIT, and together with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from server.errors import RefusedError, StorageError
from server.storage import database as module
from server.storage.database import Database, announce
from server.storage.tables import Agent, Group, Setting


def add(name: str) -> Callable[[Session], str]:
    def work(session: Session) -> str:
        session.add(Group(name=name, created_at=1.0))
        session.flush()
        return name

    return work


def names(session: Session) -> set[str]:
    return set(session.scalars(select(Group.name))) - {"default"}


class Gate:
    """A work that holds the writer until it is opened, so that others share the next turn."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, _session: Session) -> None:
        self.reached.set()
        assert self.opened.wait(30)


async def together(database: Database, *works: Callable[[Session], object]) -> list[object]:
    """What each work came to, when all of them share one transaction."""
    gate = Gate()
    first = asyncio.ensure_future(database.write(gate))
    await asyncio.to_thread(gate.reached.wait)
    rest = [asyncio.ensure_future(database.write(work)) for work in works]
    await asyncio.sleep(0)
    gate.opened.set()
    await first
    return await asyncio.gather(*rest, return_exceptions=True)


def transaction_of(session: Session) -> object:
    if session.get_bind().dialect.name == "postgresql":
        return session.scalar(text("SELECT pg_current_xact_id()::text"))
    return session.connection().connection.dbapi_connection


def test_what_was_written_is_read(database: Database) -> None:
    assert asyncio.run(database.write(add("one"))) == "one"
    assert asyncio.run(database.read(names)) == {"one"}


def test_a_read_cannot_write(database: Database) -> None:
    with pytest.raises(StorageError, match=r"read-?only"):
        database.read_blocking(add("one"))
    assert database.read_blocking(names) == set()


def test_works_that_wait_share_a_transaction(database: Database) -> None:
    found = asyncio.run(together(database, *[transaction_of] * 5))
    assert len(set(found)) == 1


def test_a_work_that_raises_undoes_only_itself(database: Database) -> None:
    def fails(session: Session) -> None:
        add("torn")(session)
        raise RefusedError("no", status=409, code="no")

    before, failed, duplicate, after = asyncio.run(
        together(database, add("before"), fails, add("before"), add("after"))
    )
    assert (before, after) == ("before", "after")
    assert isinstance(failed, RefusedError)
    assert isinstance(duplicate, StorageError)
    assert database.read_blocking(names) == {"before", "after"}


def test_an_error_names_the_database_and_no_value(database: Database) -> None:
    database.write_blocking(add("hush"))
    with pytest.raises(StorageError) as caught:
        database.write_blocking(add("hush"))
    assert "the database" in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "parameters hidden" in str(caught.value.__cause__)


def test_a_value_that_cannot_be_stored_is_the_requests_fault(database: Database) -> None:
    if database.url.get_backend_name() == "sqlite":
        pytest.skip("SQLite stores it")
    with pytest.raises(RefusedError) as caught:
        database.write_blocking(add("a\0b"))
    assert caught.value.status == 400
    with pytest.raises(RefusedError):
        database.read_blocking(lambda session: session.get(Group, "a\0b"))


def commit_will_fail(session: Session) -> str:
    """On SQLite a reference that COMMIT finds broken; on PostgreSQL the connection is cut."""
    if session.get_bind().dialect.name == "sqlite":
        session.execute(text("PRAGMA defer_foreign_keys=ON"))
        session.execute(text("INSERT INTO upstream_counts VALUES ('none', 1, 1.0, '{}')"))
        return "doomed"
    pid = session.scalar(text("SELECT pg_backend_pid()"))
    url = session.get_bind().engine.url
    with psycopg.connect(
        host=str(url.query["host"]), user="postgres", dbname="postgres", autocommit=True
    ) as door:
        door.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    return "doomed"


def test_a_commit_that_fails_fails_every_work_in_it(database: Database) -> None:
    works = (add("one"), commit_will_fail)
    outcomes = asyncio.run(together(database, *works))
    assert [type(outcome) for outcome in outcomes] == [StorageError] * 2
    assert database.read_blocking(names) == set()


def test_after_a_commit_that_failed_the_next_write_succeeds(database: Database) -> None:
    with pytest.raises(StorageError):
        database.write_blocking(commit_will_fail)
    database.write_blocking(add("next"))
    assert database.read_blocking(names) == {"next"}


def test_works_after_one_that_lost_the_transaction_are_not_run_outside_it(
    database: Database,
) -> None:
    """The whole transaction goes, also when it ends in the middle of it."""

    def lost(session: Session) -> None:
        if session.get_bind().dialect.name == "sqlite":
            session.execute(text("ROLLBACK"))
        else:
            commit_will_fail(session)
        session.execute(text("SELECT 1"))
        raise RuntimeError

    outcomes = asyncio.run(together(database, add("before"), lost, add("after")))
    assert [type(outcome) for outcome in outcomes] == [StorageError] * 3
    assert database.read_blocking(names) == set()
    database.write_blocking(add("next"))
    assert database.read_blocking(names) == {"next"}


def test_a_connection_that_died_at_rest_is_replaced(database: Database) -> None:
    if database.url.get_backend_name() == "sqlite":
        pytest.skip("a file has no connection to lose")
    database.write_blocking(add("one"))
    database.read_blocking(names)
    with psycopg.connect(
        host=str(database.url.query["host"]), user="postgres", dbname="postgres", autocommit=True
    ) as door:
        door.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
            [database.url.database],
        )
    database.write_blocking(add("two"))
    assert database.read_blocking(names) == {"one", "two"}


def test_a_flood_is_refused_and_those_before_it_are_served(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITES_WAITING_MAX", 3)

    async def flood() -> list[object]:
        return await together(database, *[add(f"g{number}") for number in range(5)])

    outcomes = asyncio.run(flood())
    assert outcomes[:3] == ["g0", "g1", "g2"]
    refused = [outcome for outcome in outcomes if isinstance(outcome, RefusedError)]
    assert [(error.status, error.retry_after_s) for error in refused] == [(503, 5.0)] * 2
    assert database.read_blocking(names) == {"g0", "g1", "g2"}


def test_a_flood_of_reads_is_refused(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READS_WAITING_MAX", module.READERS)
    database = Database(database_url)
    opened = threading.Event()

    async def flood() -> None:
        held = [
            asyncio.ensure_future(database.read(lambda _: opened.wait(30)))
            for _ in range(module.READERS)
        ]
        await asyncio.sleep(0)
        with pytest.raises(RefusedError) as caught:
            await database.read(names)
        assert caught.value.status == 503
        opened.set()
        await asyncio.gather(*held)
        await database.read(names)

    asyncio.run(flood())
    database.close()


def test_a_request_that_went_away_before_its_turn_is_not_served(database: Database) -> None:
    async def leave() -> None:
        gate = Gate()
        first = asyncio.ensure_future(database.write(gate))
        await asyncio.to_thread(gate.reached.wait)
        left = asyncio.ensure_future(database.write(add("left")))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.sleep(0)
        gate.opened.set()
        await first

    asyncio.run(leave())
    database.write_blocking(add("stays"))
    assert database.read_blocking(names) == {"stays"}


def test_what_is_announced_is_heard_after_it_is_durable_and_not_otherwise(
    database: Database,
) -> None:
    heard: list[tuple[str, bool]] = []

    def listener(what: str) -> None:
        heard.append((what, what in database.read_blocking(names)))

    database.subscribe("groups", listener)

    def told(name: str, *, fails: bool) -> Callable[[Session], None]:
        def work(session: Session) -> None:
            add(name)(session)
            announce(session, "groups", name)
            if fails:
                raise RefusedError("no", status=409, code="no")

        return work

    asyncio.run(together(database, told("kept", fails=False), told("torn", fails=True)))
    assert heard == [("kept", True)]


def test_closing_finishes_what_was_taken_on_and_refuses_more(database_url: str) -> None:
    database = Database(database_url)

    async def close() -> list[object]:
        gate = Gate()
        writes = [asyncio.ensure_future(database.write(gate))]
        await asyncio.to_thread(gate.reached.wait)
        writes += [asyncio.ensure_future(database.write(add(f"g{n}"))) for n in range(3)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(database.close))
        gate.opened.set()
        await closing
        return await asyncio.gather(*writes)

    assert asyncio.run(close()) == [None, "g0", "g1", "g2"]
    for ask in (database.read_blocking, database.write_blocking):
        with pytest.raises(StorageError, match="is closed"):
            ask(names)
    again = Database(database_url)
    assert again.read_blocking(names) == {"g0", "g1", "g2"}
    again.close()


def test_references_are_held(database: Database) -> None:
    with pytest.raises(StorageError, match=r"(?i)foreign key"):
        database.write_blocking(
            lambda session: session.execute(
                text("INSERT INTO upstream_counts VALUES ('none', 1, 1.0, '{}')")
            )
        )


def test_rows_stay_usable_after_their_session(database: Database) -> None:
    row = database.read_blocking(lambda session: session.get(Group, "default"))
    assert row is not None
    assert row.name == "default"


def test_json_goes_in_and_comes_out_as_it_was(database: Database) -> None:
    value: dict[str, object] = {"ä": [1, 2.5, None, {"x": "y\u2028"}], "n": 1 << 53}
    database.write_blocking(
        lambda session: session.add(Setting(key="k", value=value, changed_at=1.0))
    )
    row = database.read_blocking(lambda session: session.get(Setting, "k"))
    assert row is not None
    assert row.value == value


@pytest.mark.parametrize(
    "url",
    ["mysql://x/y", "sqlite://", "sqlite:///:memory:", "no url", "oracle:thing"],
)
def test_another_kind_of_database_is_refused(url: str) -> None:
    with pytest.raises(StorageError, match="expected sqlite:///PATH or postgresql://"):
        Database(url)


def test_a_database_that_cannot_be_reached_is_told_without_its_password(tmp_path: Path) -> None:
    database = Database(f"postgresql://me:hunter2@/x?host={tmp_path}")
    for use in (database.migrate, lambda: database.read_blocking(names)):
        with pytest.raises(StorageError) as caught:
            use()
        assert "hunter2" not in f"{caught.value} {caught.value.__cause__!r}"
        assert str(tmp_path) in str(caught.value)
    database.close()


def test_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/nowhere/server.db")
    with pytest.raises(StorageError, match="No such file or directory"):
        database.migrate()
    database.close()


def test_the_embedded_database_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.write_blocking(add("one"))
    assert [entry.stat().st_mode & 0o077 for entry in tmp_path.iterdir()] == [0, 0, 0]
    database.close()


def test_the_embedded_database_flushes_every_commit(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'server.db'}")
    database.migrate()

    def pragmas(session: Session) -> list[object]:
        asked = ("journal_mode", "synchronous", "foreign_keys")
        return [session.scalar(text(f"PRAGMA {name}")) for name in asked]

    assert database.write_blocking(pragmas) == ["wal", 2, 1]
    assert database.write_blocking(lambda s: s.scalar(select(func.count()).select_from(Agent))) == 0
    database.close()


def test_a_full_disk_loses_nothing_acknowledged_and_is_told(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'server.db'}")
    database.migrate()

    def limit(pages: int) -> None:
        database.write_blocking(lambda s: s.execute(text(f"PRAGMA max_page_count={pages}")))

    def large(name: str) -> Callable[[Session], str]:
        def work(session: Session) -> str:
            session.add(Setting(key=name, value={"x": "y" * 20_000}, changed_at=1.0))
            session.flush()
            return name

        return work

    limit(database.write_blocking(lambda s: s.scalar(text("PRAGMA page_count"))) + 40)
    kept: list[object] = []
    for turn in range(20):
        works = [large(f"{turn}-{number}") for number in range(3)]
        outcomes = asyncio.run(together(database, *works))
        kept += [outcome for outcome in outcomes if isinstance(outcome, str)]
        failed = [outcome for outcome in outcomes if not isinstance(outcome, str)]
        assert {str(error).rpartition(": ")[2] for error in failed} <= {"database or disk is full"}
    assert 0 < len(kept) < 60
    assert database.read_blocking(lambda s: set(s.scalars(select(Setting.key)))) == set(kept)
    limit(100_000)
    database.write_blocking(large("after"))
    database.close()
