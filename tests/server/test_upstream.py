"""What is sent to the next server, and when again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from feed.errors import SecurityServerError
from feed.messages import EnrolRequest
from server import upstream
from server.errors import StorageError
from server.settings import Policy
from server.storage.database import Database
from server.upstream import AGAIN_S, EVERY_S, Membership, Upstream
from server.web.inforce import InForce


@pytest.fixture
def joined(tmp_path: Path, database: Database) -> Upstream:
    """It has a next server."""
    path = tmp_path / "upstream.json"
    member = Membership(url="http://127.0.0.1:9", agent_id="a", credential="c")
    path.write_bytes(msgspec.json.encode(member))
    return Upstream(path, database, InForce(database, Policy()), clock=time.time)


@pytest.mark.parametrize(("asked", "waits"), [(None, AGAIN_S), (60.0, 60.0), (1e12, EVERY_S)])
def test_a_next_server_that_puts_off_is_asked_within_the_hour(
    joined: Upstream, monkeypatch: pytest.MonkeyPatch, asked: float | None, waits: float
) -> None:
    def post(*_: object) -> None:
        raise SecurityServerError("later", retry_after_s=asked)

    monkeypatch.setattr(upstream, "_post", post)
    assert asyncio.run(joined._send()) == waits


def test_counts_wait_for_a_database_that_is_away(
    joined: Upstream, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_work: object) -> None:
        raise StorageError("the database is away")

    monkeypatch.setattr(database, "write", away)
    assert asyncio.run(joined._send()) == AGAIN_S


def test_an_enrolment_while_counts_are_sent_sends_them_again(
    joined: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        sent: list[int] = []
        twice = asyncio.Event()

        async def send() -> float:
            sent.append(1)
            if len(sent) == 1:
                await joined.enrol(url="http://127.0.0.1:9", token="t")
            else:
                twice.set()
            return EVERY_S

        monkeypatch.setattr(joined, "_send", send)
        monkeypatch.setattr(upstream, "_enrol", lambda *_, **__: None)
        task = asyncio.create_task(joined.run())
        async with asyncio.timeout(20):
            await twice.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(play())


def test_the_next_server_learns_no_machines_name(
    joined: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[EnrolRequest] = []

    def enrol(_url: str, _token: str, request: EnrolRequest) -> Any:
        asked.append(request)
        raise SecurityServerError("no")

    monkeypatch.setattr(upstream.enrolling, "enrol", enrol)
    monkeypatch.setattr("socket.gethostname", lambda: "secret-host")
    with pytest.raises(SecurityServerError):
        upstream._enrol(Path("unused"), url="u", token="t", host_id="0123456789abcdef")
    assert asked[0].facts.name == "server-01234567"
    assert b"secret-host" not in msgspec.json.encode(asked[0])
