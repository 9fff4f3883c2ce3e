"""A schema is brought forward whole or not at all, and tables.py says what it is."""

from __future__ import annotations

import functools
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, select, text
from sqlalchemy.orm import Session

from server.errors import StorageError
from server.storage import engines, migrating
from server.storage.database import Database
from server.storage.tables import Group, Table
from tests.server.orders import Order, Orders, taking

NEXT = '''
"""A later schema: a table is copied, a column is added and filled, an index goes."""

import sqlalchemy as sa
from alembic import op

revision = "9001"
down_revision = "{newest}"


def upgrade() -> None:
    with op.batch_alter_table("groups", recreate="{recreate}") as batch:
        batch.add_column(sa.Column("colour", sa.String(64), nullable=True))
    op.execute("UPDATE groups SET colour = 'grey'")
    op.create_table("extra", sa.Column("id", sa.Integer(), primary_key=True))
    op.bulk_insert(sa.table("extra", sa.column("id")), [{{"id": 1}}, {{"id": 2}}])
    op.drop_index("agents_by_name", "agents")
'''


@pytest.fixture(scope="module")
def orders() -> Iterator[Orders]:
    with taking() as made:
        yield made


def migrate(url: str) -> None:
    database = Database(url)
    database.migrate()
    database.close()


def newest() -> str:
    head = ScriptDirectory(str(migrating.SCRIPTS)).get_current_head()
    assert head is not None
    return head


def later(folder: Path, url: str) -> Path:
    """The product's migrations and one more."""
    scripts = folder / "scripts"
    shutil.copytree(migrating.SCRIPTS, scripts)
    recreate = "always" if url.startswith("sqlite") else "never"
    step = NEXT.format(newest=newest(), recreate=recreate)
    (scripts / "versions" / "9001_later.py").write_text(step)
    return scripts


def look(url: str) -> tuple[str | None, set[str], list[str]]:
    """The revision, the tables, and what the groups are."""
    with _engine(url).connect() as connection:
        found = set(inspect(connection).get_table_names())
        groups = list(connection.scalars(select(Group.name))) if "groups" in found else []
        revision = MigrationContext.configure(connection).get_current_revision()
    return revision, found, groups


@functools.cache
def _engine(url: str) -> Engine:
    """It keeps no connection."""
    return engines.engine(engines.parsed(url), "migrate")


def test_the_migrations_make_the_tables_that_the_program_knows(empty_database_url: str) -> None:
    migrate(empty_database_url)
    engine = engines.engine(engines.parsed(empty_database_url), "migrate")

    def differences(connection: Connection) -> list[object]:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, Table.metadata))

    with engine.connect() as connection:
        assert differences(connection) == []
        connection.execute(text("DROP INDEX agents_by_name"))
        assert len(differences(connection)) == 1, "the comparison sees nothing"
    engine.dispose()


def test_migrating_again_changes_nothing(empty_database_url: str) -> None:
    migrate(empty_database_url)
    database = Database(empty_database_url)
    database.write_blocking(lambda session: session.add(Group(name="mine", created_at=1.0)))
    database.migrate()
    assert database.read_blocking(lambda s: set(s.scalars(select(Group.name)))) == {
        "default",
        "mine",
    }
    database.close()


def test_two_that_migrate_at_once_both_find_it_done(empty_database_url: str) -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            migrate(empty_database_url)
        except StorageError as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert look(empty_database_url)[0] == newest()


def test_a_newer_schema_is_refused_and_left_alone(
    empty_database_url: str, tmp_path: Path, orders: Orders
) -> None:
    scripts = later(tmp_path, empty_database_url)
    assert orders.run(Order(empty_database_url, str(scripts))) == 0
    before = look(empty_database_url)
    with pytest.raises(StorageError, match=rf"schema 9001, this program knows up to {newest()}"):
        migrate(empty_database_url)
    assert look(empty_database_url) == before


def test_a_migration_that_fails_leaves_the_old_schema(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(empty_database_url)
    before = look(empty_database_url)
    scripts = later(tmp_path, empty_database_url)
    with (scripts / "versions" / "9001_later.py").open("a") as step:
        step.write('    op.execute("SELECT * FROM nowhere")\n')
    monkeypatch.setattr(migrating, "SCRIPTS", scripts)
    with pytest.raises(StorageError, match="nowhere"):
        migrate(empty_database_url)
    assert look(empty_database_url) == before


def test_a_migration_that_breaks_a_reference_leaves_the_old_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL holds references all the time; on SQLite they are checked at the end."""
    url = f"sqlite:///{tmp_path / 'server.db'}"
    migrate(url)
    before = look(url)
    scripts = later(tmp_path, url)
    with (scripts / "versions" / "9001_later.py").open("a") as step:
        orphan = "INSERT INTO agent_components VALUES ('nobody', 'c', '1')"
        step.write(f'    op.execute("{orphan}")\n')
    monkeypatch.setattr(migrating, "SCRIPTS", scripts)
    with pytest.raises(StorageError, match="agent_components refers to a missing one of agents"):
        migrate(url)
    assert look(url) == before


def deaths(orders: Orders, url: str, scripts: Path, *, step: int) -> Iterator[int]:
    """Migrate until it comes through, killed some statements later each time."""
    for die_after in range(1, 500, step):
        code = orders.run(Order(url, str(scripts), die_after))
        if code == 0:
            return
        assert code == -9
        yield die_after


def test_killed_at_any_statement_the_first_migration_is_whole_or_absent(
    empty_database_url: str, orders: Orders
) -> None:
    killed = 0
    for where in deaths(orders, empty_database_url, migrating.SCRIPTS, step=3):
        revision, tables, groups = look(empty_database_url)
        assert (revision, tables - {"alembic_version"}, groups) == (None, set(), []), where
        killed += 1
    assert killed > 7
    assert look(empty_database_url)[::2] == (newest(), ["default"])


def test_killed_at_any_statement_a_later_migration_leaves_the_old_schema_and_its_rows(
    empty_database_url: str, tmp_path: Path, orders: Orders
) -> None:
    migrate(empty_database_url)

    def fill(session: Session) -> None:
        session.add_all(Group(name=f"g{number}", created_at=1.0) for number in range(3))

    database = Database(empty_database_url)
    database.write_blocking(fill)
    database.close()
    before = look(empty_database_url)
    scripts = later(tmp_path, empty_database_url)
    killed = 0
    for where in deaths(orders, empty_database_url, scripts, step=1):
        assert look(empty_database_url) == before, where
        killed += 1
    assert killed > 6
    revision, tables, groups = look(empty_database_url)
    assert revision == "9001"
    assert tables == before[1] | {"extra"}
    assert sorted(groups) == sorted(before[2])
