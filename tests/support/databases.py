"""Both kinds of database for tests: fixtures, and one PostgreSQL for the whole run.

The first test that needs PostgreSQL makes a cluster in a temporary folder and
starts it there, reachable through a socket file alone; every worker of the run
uses it. A supervisor stops it and removes the folder when pytest's own process
has ended, however that happened:

    python -m tests.support.databases FOLDER PID

Each test finds a migrated database with nothing in it: SQLite's is a copy, and
each worker has one of PostgreSQL's that is emptied before each test, which is
several times faster than making one. `postgresql` makes more of them.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Integer, make_url

from server.storage.database import Database
from server.storage.tables import Table
from tests.support import shared

ROOT = Path(__file__).parents[2]
KINDS = ("sqlite", "postgresql")
START_S = 60.0
TEMPLATE = "template_holdfast"
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",  # a killed process loses nothing; a power cut isn't tested here
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_wal_size": "256MB",
    "max_connections": "200",
    "autovacuum": "off",
    "log_min_messages": "panic",
}


def binaries() -> Path | None:
    """PostgreSQL's programs: on the path, or the newest that Debian installed."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    installed = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = sorted(installed, key=lambda path: int(re.sub(r"\D", "", path.parts[4]) or 0))
    return newest[-1].parent if newest else None


def why_not() -> str:
    """Why PostgreSQL can't be used here; empty when it can."""
    if binaries() is None:
        return "PostgreSQL isn't installed"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "root can't run PostgreSQL, and there is no user postgres"
    return ""


def url(folder: str, name: str) -> str:
    """The URL of a database of the cluster in `folder`."""
    return f"postgresql+psycopg://postgres@/{name}?host={folder}"


@contextlib.contextmanager
def postgresql(folder: str, *, template: str = TEMPLATE) -> Iterator[str]:
    """The URL of a database of its own, gone afterwards."""
    name = f"t{secrets.token_hex(8)}"
    _administer(folder, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield url(folder, name)
    finally:
        _administer(folder, f"DROP DATABASE {name} WITH (FORCE)")


def _administer(
    folder: str, statement: LiteralString | sql.Composed, *, database: str = "postgres"
) -> None:
    with psycopg.connect(host=folder, user="postgres", dbname=database, autocommit=True) as door:
        door.execute(statement)


@contextlib.contextmanager
def durable_cluster() -> Iterator[str]:
    """The folder of a PostgreSQL of one's own that flushes as it does by default."""
    with tempfile.TemporaryDirectory(prefix="holdfast-pg-") as name:
        server = _start(Path(name), {"listen_addresses": "", "log_min_messages": "panic"})
        try:
            yield name
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)


@pytest.fixture(scope="session")
def postgresql_cluster(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the run's cluster, which is also where its socket is."""
    if reason := why_not():
        pytest.skip(reason)
    return shared.once(tmp_path_factory, "postgresql", _prepare, str)


@pytest.fixture(scope="session")
def postgresql_of_worker(postgresql_cluster: str) -> Iterator[str]:
    """The name of a migrated database that this worker's tests use one after the other."""
    with postgresql(postgresql_cluster) as made:
        yield str(make_url(made).database)


def _empty(folder: str, name: str) -> None:
    """Back to what the migrations leave."""
    tables = [table.name for table in reversed(Table.metadata.sorted_tables)]
    statements = [sql.SQL("DELETE FROM {}").format(sql.Identifier(table)) for table in tables]
    statements += [
        sql.SQL("SELECT setval(pg_get_serial_sequence({}, 'id'), 1, false)").format(table.name)
        for table in Table.metadata.sorted_tables
        if "id" in table.c and isinstance(table.c.id.type, Integer)
    ]
    statements.append(sql.SQL("INSERT INTO groups VALUES ('default', 0)"))
    _administer(folder, sql.SQL("; ").join(statements), database=name)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(params=KINDS)
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def database_url(database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A migrated database with nothing in it, of each kind in turn."""
    if database_kind == "sqlite":
        path = tmp_path / "server.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        return f"sqlite:///{path}"
    folder = str(request.getfixturevalue("postgresql_cluster"))
    name = str(request.getfixturevalue("postgresql_of_worker"))
    _empty(folder, name)
    return url(folder, name)


@pytest.fixture
def empty_database_url(
    database_kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[str]:
    """A database that nothing has been done to, of each kind in turn."""
    if database_kind == "sqlite":
        yield f"sqlite:///{tmp_path / 'server.db'}"
        return
    with postgresql(request.getfixturevalue("postgresql_cluster"), template="template0") as made:
        yield made


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database of each kind in turn."""
    made = Database(database_url)
    yield made
    made.close()


def _migrate(address: str) -> None:
    made = Database(address)
    made.migrate()
    made.close()


def _prepare(_folder: Path) -> str:
    """Start the cluster. Its own folder: a socket's path is short, its owner postgres."""
    folder = tempfile.mkdtemp(prefix="holdfast-pg-")
    run_by = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    subprocess.run(
        [sys.executable, "-m", "tests.support.databases", folder, str(run_by)],
        check=True,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        timeout=START_S + 10,
    )
    _administer(folder, f"CREATE DATABASE {TEMPLATE}")
    _migrate(url(folder, TEMPLATE))
    return folder


def supervise(folder: Path, run_by: int) -> int:
    """Start a cluster; a process that is left behind ends it after `run_by`."""
    pytest_ended = os.pidfd_open(run_by)
    server = _start(folder, SETTINGS).pid
    if os.fork():
        os._exit(0)
    os.setsid()
    for number in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    _wait(pytest_ended, None)
    ended = os.pidfd_open(server)
    signal.pidfd_send_signal(ended, signal.SIGQUIT)  # at once: nothing of it is needed
    if not _wait(ended, 10):
        signal.pidfd_send_signal(ended, signal.SIGKILL)
        _wait(ended, 10)
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def _start(folder: Path, changes: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A PostgreSQL that answers."""
    programs = binaries()
    assert programs is not None
    data = folder / "data"
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    options: dict[str, Any] = {"cwd": folder, **silent}
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        options |= {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    made = [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust"]
    subprocess.run(
        [*made, "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"],
        check=True,
        timeout=START_S,
        **options,
    )
    settings = {**changes, "unix_socket_directories": str(folder)}
    arguments = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
    server = subprocess.Popen(
        [programs / "postgres", "-D", data, *arguments], start_new_session=True, **options
    )
    deadline = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(psycopg.OperationalError):
            _administer(str(folder), "SELECT 1")
            return server
        time.sleep(0.02)
    raise SystemExit("PostgreSQL didn't start")


def _wait(process: int, seconds: float | None) -> bool:
    return bool(select.select([process], [], [], seconds)[0])


if __name__ == "__main__":
    raise SystemExit(supervise(Path(sys.argv[1]), int(sys.argv[2])))
