"""A feed folder, and a server on each kind of database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.storage.database import Database
from tests.support import webserver
from tests.support.webserver import WebServer

DIGEST = "b" * 64
BIG = f"targets/components/virus-pattern/173/{DIGEST}.full"
BIG_CONTENT = bytes(range(256)) * (64 << 10)  # 16 MiB: more than socket buffers take


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    folder = tmp_path / "feed"
    (folder / "metadata").mkdir(parents=True)
    (folder / "metadata" / "timestamp.json").write_text("{}")
    (folder / BIG).parent.mkdir(parents=True)
    (folder / BIG).write_bytes(BIG_CONTENT)
    return folder


@pytest.fixture
def admin(database: Database) -> str:
    return webserver.administrator(database)


@pytest.fixture
def server(database: Database, feed: Path) -> Iterator[WebServer]:
    with webserver.served(database, feed) as made:
        yield made


@pytest.fixture
def lone_database(tmp_path: Path, sqlite_template: Path) -> Iterator[Database]:
    """SQLite alone, where the database is beside the point."""
    path = tmp_path / "lone.db"
    path.write_bytes(sqlite_template.read_bytes())
    made = Database(f"sqlite:///{path}")
    yield made
    made.close()
