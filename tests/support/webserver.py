"""The web layer on a real uvicorn over loopback, with a mirror that only answers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx

from feed.messages import CHECK_IN_PATH, ENROL_PATH
from server.accounts import access, policy, setup
from server.accounts.credentials import Credentials
from server.errors import BusyError, conflict
from server.fleet.checkins import CheckIns
from server.notify import rounds
from server.notify.rounds import Announcer
from server.settings import Limits, Policy
from server.storage.database import Database
from server.web.app import build
from server.web.connections import Connections, Server, uvicorn_config
from server.web.door import Door
from server.web.inforce import InForce
from server.web.models import (
    Progress,
    Retention,
    RetentionChoice,
    Scrubbed,
    SourceView,
    UpstreamView,
)
from server.web.parts import Parts

WAIT_S = 20.0
GENEROUS = Limits(agent_requests_per_s=1e5, agent_requests_burst=100_000, enrolments_per_s=1e5)


class StillMirror:
    """A mirror at rest; `busy` makes it refuse."""

    def __init__(self) -> None:
        self.busy = False
        self.asked = 0
        self.fleet_changes = 0
        self.url: str | None = None

    def sync_now(self) -> None:
        if self.busy:
            raise BusyError("a sync is running")
        self.asked += 1

    def progress(self) -> Progress | None:
        return Progress(what="r173", done_bytes=1, total_bytes=2) if self.busy else None

    def next_at(self) -> float | None:
        return None

    async def releases(self) -> tuple[str, ...]:
        return ("r173",)

    async def retention(self) -> Retention:
        choice = RetentionChoice(versions_kept=14, bytes=10, agents_to_fulls=0)
        return Retention(in_force=14, choices=[choice])

    async def scrub_now(self) -> Scrubbed:
        return Scrubbed(sentence="1 file is as signed", checked=1, damaged=[], repaired=[])

    async def source(self) -> SourceView:
        return SourceView(url=self.url, trust_root_sha256=None, from_file=False)

    async def set_source(self, *, url: str | None, trust_root: str | None, by: str) -> SourceView:
        self.url = url or self.url
        return await self.source()


class NoUpstream:
    """There is no next server, and none refuses."""

    async def view(self) -> UpstreamView:
        return UpstreamView(url=None, agent_id=None)

    async def enrol(self, *, url: str, token: str) -> UpstreamView:
        raise conflict("no server answers there", code="server_unreachable")

    async def forget(self) -> None:
        return


def parts(database: Database, feed: Path, *, limits: Limits = GENEROUS, **more: Any) -> Parts:
    """All that `build` needs, on this database."""
    in_force = InForce(database, database.read_blocking(policy.load))
    door = Door(database, Credentials(database), limits, monotonic=time.monotonic, clock=time.time)
    hub = rounds.hub_of(
        database,
        door.agent,
        policy=in_force,
        clock=time.time,
        most=limits.connections_max,
        newest=database.read_blocking(rounds.newest),
    )
    given: dict[str, Any] = {
        "database": database,
        "door": door,
        "check_ins": CheckIns(database, in_force),
        "hub": hub,
        "announcer": Announcer(database, hub, time.time),
        "policy": in_force,
        "mirror": StillMirror(),
        "upstream": NoUpstream(),
        "feed": feed,
        "clock": time.time,
        "started_at": time.time(),
        "url": "https://server.example:8443",
        "limits": limits,
        "connections": Connections(),
    }
    return Parts(**(given | more))


def administrator(database: Database, name: str = "ada") -> str:
    """An administrator's token."""
    return database.write_blocking(
        lambda session: access.issue(session, kind="admin", name=name, now=time.time())
    )


def enrolment_token(database: Database, **more: Any) -> str:
    return database.write_blocking(
        lambda session: access.issue(session, kind="enrol", name="e", now=time.time(), **more)
    )


def setup_token(database: Database) -> str:
    made = database.write_blocking(lambda session: setup.prepare(session, now=time.time()))
    assert made is not None
    return made


def store_policy(database: Database, given: Policy) -> None:
    database.write_blocking(
        lambda session: policy.store(session, given, now=time.time(), by="test")
    )


def facts(host: str = "host-1", **more: Any) -> dict[str, Any]:
    said = {"host_id": host, "name": host, "platform": "linux-x86_64", "agent_version": "0.1.0"}
    return said | more


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


class WebServer:
    """`with WebServer(parts) as server`: it serves from a thread of this process."""

    def __init__(self, made: Parts, **more: Any) -> None:
        self.parts = made
        given: dict[str, Any] = {"host": "127.0.0.1", "port": 0} | more
        config = uvicorn_config(build(made), made.limits, made.connections, **given)
        self._server = Server(config, closing=made.hub.close)
        self._thread = threading.Thread(target=self._server.run)
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def port(self) -> int:
        return int(self._server.servers[0].sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        wait_for(lambda: self._server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> float:
        """Seconds that the orderly end took."""
        began = time.monotonic()
        self._server.should_exit = True
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        return time.monotonic() - began

    def client(self, token: str | None = None) -> httpx.Client:
        return httpx.Client(
            base_url=self.url,
            headers=bearer(token) if token else {},
            timeout=WAIT_S,
            trust_env=False,
        )

    def enrol(self, host: str = "host-1", *, role: str = "agent") -> dict[str, Any]:
        """What an agent of this host is told on enrolling."""
        token = enrolment_token(self.parts.database, role=role)
        with self.client(token) as client:
            answer = client.post(ENROL_PATH, json={"facts": facts(host), "role": role})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def check_in(self, agent: dict[str, Any], host: str, **more: Any) -> httpx.Response:
        with self.client(agent["credential"]) as client:
            return client.post(CHECK_IN_PATH, json={"facts": facts(host), **more})


def wait_for(happened: Any, *, seconds: float = WAIT_S) -> None:
    """Until `happened()`, or the test fails."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it didn't happen in time"
        time.sleep(0.01)


@contextlib.contextmanager
def served(database: Database, feed: Path, **more: Any) -> Iterator[WebServer]:
    """A server with these parts."""
    with WebServer(parts(database, feed, **more)) as server:
        yield server
