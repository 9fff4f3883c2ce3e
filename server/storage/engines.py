"""Connections to the one database, and what their failures are called.

SQLite: write-ahead log and synchronous=FULL, so that what was committed
survives a power cut; transactions begin where we say so, so that savepoints
and DDL are part of them. PostgreSQL: psycopg 3, a connection found dead is
replaced. Statements in exceptions come without their parameters.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import Any, Literal

import msgspec
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from server.errors import RefusedError, ServerError, StorageError

Purpose = Literal["read", "write", "migrate"]

BUSY_S = 15  # another process writes: wait so long
MIGRATION_BUSY_S = 120  # another process migrates
BUSY_PAUSE_S = 0.05
WAL_KEPT_BYTES = 64 << 20
POSTGRESQL_CONNECT_S = 10
DEAD_PEER = {  # a peer that vanished without a word is noticed within a minute
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 50_000,
}


def parsed(text: str) -> URL:
    """The URL of a database this program can use.

    Raises StorageError: not sqlite:///PATH or postgresql://…
    """
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise StorageError("database: expected sqlite:///PATH or postgresql://…") from error
    kind = url.get_backend_name()
    if kind == "sqlite" and url.database and url.database != ":memory:":
        return url.set(drivername="sqlite")
    if kind == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    raise StorageError(
        f"database: {kind} isn't supported; expected sqlite:///PATH or postgresql://…"
    )


def named(url: URL) -> str:
    """The database, for messages: never a password."""
    if url.get_backend_name() == "sqlite":
        return f"the database {url.database}"
    return (
        f"the database {url.database or ''!r} at {url.host or url.query.get('host', 'localhost')}"
    )


def engine(url: URL, purpose: Purpose, *, connections: int = 1) -> Engine:
    """An engine whose connections are set up for `purpose`; nothing is opened yet."""
    pool: dict[str, Any] = {"pool_size": connections, "max_overflow": 0}
    if purpose == "migrate":
        pool = {"poolclass": NullPool}
    sqlite = url.get_backend_name() == "sqlite"
    made = create_engine(
        url,
        hide_parameters=True,
        pool_pre_ping=not sqlite,
        connect_args={} if sqlite else {"connect_timeout": POSTGRESQL_CONNECT_S, **DEAD_PEER},
        json_serializer=_json,
        json_deserializer=msgspec.json.decode,
        **pool,
    )
    if sqlite:
        _prepare_sqlite(made, purpose)
    elif purpose == "read":
        event.listen(made, "connect", _read_only)
    return made


def explained(error: SQLAlchemyError, url: URL) -> ServerError:
    """What a failed statement is to whoever asked: the reason, no values.

    RefusedError where a value is at fault, StorageError otherwise.
    """
    if isinstance(error, DataError):
        return RefusedError(
            "a value in the request can't be stored", status=400, code="value_refused"
        )
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    return StorageError(f"{named(url)}: {reason}")


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _read_only(connection: Any, _record: object) -> None:
    connection.read_only = True


def _prepare_sqlite(made: Engine, purpose: Purpose) -> None:
    begin = "BEGIN" if purpose == "read" else "BEGIN IMMEDIATE"
    path = Path(str(made.url.database))

    def connected(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        for pragma in _pragmas(purpose):
            connection.execute(f"PRAGMA {pragma}")
        mode = _write_ahead(connection, purpose)
        if mode != "wal":
            raise sqlite3.OperationalError(
                f"the file system can't keep a write-ahead log (journal mode {mode}); "
                "put the database on a local disk"
            )
        if purpose == "read":
            connection.execute("PRAGMA query_only=ON")

    event.listen(made, "do_connect", lambda *_: _make_private(path))
    event.listen(made, "connect", connected)
    event.listen(made, "begin", lambda connection: connection.exec_driver_sql(begin))


def _write_ahead(connection: sqlite3.Connection, purpose: Purpose) -> str:
    """The journal mode, after asking for a write-ahead log.

    Of two that turn a new file over at once, SQLite refuses one without waiting.
    """
    deadline = time.monotonic() + _busy_s(purpose)
    while True:
        try:
            return str(connection.execute("PRAGMA journal_mode=WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() > deadline:
                raise
        time.sleep(BUSY_PAUSE_S)


def _busy_s(purpose: Purpose) -> int:
    return MIGRATION_BUSY_S if purpose == "migrate" else BUSY_S


def _pragmas(purpose: Purpose) -> tuple[str, ...]:
    return (
        f"busy_timeout={1000 * _busy_s(purpose)}",
        "synchronous=FULL",
        # A migration may copy a table; it checks the references before it commits.
        f"foreign_keys={'OFF' if purpose == 'migrate' else 'ON'}",
        f"journal_size_limit={WAL_KEPT_BYTES}",
    )


def _make_private(path: Path) -> None:
    """A new database file is its owner's alone; the log beside it inherits that."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StorageError(f"the database {path}: {error.strerror}") from error
