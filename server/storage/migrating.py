"""From any earlier schema to this program's, in one transaction.

* SQLite and PostgreSQL both undo DDL: a process that is killed halfway, or
  fails, leaves the old schema whole.
* Two servers don't migrate at once: SQLite's write lock, PostgreSQL's
  advisory lock.
* There is no way down. An older program refuses a newer schema; a copy of
  the database from before the upgrade is the way back.
"""

from __future__ import annotations

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import SQLAlchemyError

from server.errors import StorageError
from server.storage import engines

SCRIPTS = Path(__file__).with_name("migrations")
ADVISORY_LOCK = 0x686F6C64  # any number, always the same

logging.getLogger("alembic").setLevel(logging.WARNING)


def migrate(url: URL) -> None:
    """Bring the database to the newest schema, or leave it as it was.

    Raises StorageError: it can't be used, or a newer program has been at it.
    """
    engine = engines.engine(url, "migrate")
    try:
        with engine.connect() as connection, connection.begin():
            _upgrade(connection, engines.named(url))
    except (SQLAlchemyError, CommandError) as error:
        if isinstance(error, SQLAlchemyError):
            raise engines.explained(error, url) from error
        raise StorageError(f"{engines.named(url)}: can't be migrated: {error}") from error
    finally:
        engine.dispose()


def _upgrade(connection: Connection, name: str) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
    config = configuration(connection)
    scripts = ScriptDirectory.from_config(config)
    newest = scripts.get_current_head()
    found = MigrationContext.configure(connection).get_current_revision()
    if found == newest:
        return
    if found is not None and found not in {script.revision for script in scripts.walk_revisions()}:
        raise StorageError(
            f"{name} has the schema {found}, this program knows up to {newest}: "
            "a newer server has used it; install that one, or restore a copy from before"
        )
    command.upgrade(config, "head")
    _check_references(connection, name)


def configuration(connection: Connection) -> Config:
    """What Alembic needs to run SCRIPTS on a connection."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _check_references(connection: Connection, name: str) -> None:
    """SQLite's references were not held during the migration; hold them now."""
    if connection.dialect.name != "sqlite":
        return
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchone()
    if broken:
        raise StorageError(
            f"{name}: a row of {broken[0]} refers to a missing one of {broken[2]}; "
            "the schema stays as it was"
        )
