"""What the web layer is put together from, and what its handlers reach of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from server.fleet.checkins import CheckIns
from server.notify.hub import Hub
from server.notify.rounds import Announcer
from server.settings import Limits
from server.storage.database import Database
from server.web.connections import Connections
from server.web.door import Door
from server.web.inforce import InForce
from server.web.models import Progress, Retention, Scrubbed, SourceView, UpstreamView


class Mirroring(Protocol):
    """What administrators may ask of the mirror. An origin's does nothing but answer."""

    def sync_now(self) -> None:
        """Sync as soon as may be. Raises BusyError: one runs."""

    def progress(self) -> Progress | None:
        """Where a running sync is; None between two."""

    def next_at(self) -> float | None:
        """When the next sync begins, Unix seconds."""

    async def releases(self) -> tuple[str, ...]:
        """What is served, the newest first."""

    async def retention(self) -> Retention:
        """Every choice with its cost."""

    async def scrub_now(self) -> Scrubbed:
        """Hold every file against its signature. Raises BusyError."""

    async def source(self) -> SourceView:
        """Where it updates from."""

    async def set_source(self, *, url: str | None, trust_root: str | None, by: str) -> SourceView:
        """Change what isn't None. Raises RefusedError: 409 the file names it, 400 unusable."""


class Above(Protocol):
    """The next server, which gets counts."""

    async def view(self) -> UpstreamView:
        """Which it is."""

    async def enrol(self, *, url: str, token: str) -> UpstreamView:
        """Enrol with it. Raises RefusedError: 400, 409."""

    async def forget(self) -> None:
        """Leave it."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything that `server.web.app.build` needs."""

    database: Database
    door: Door
    check_ins: CheckIns
    hub: Hub
    announcer: Announcer
    policy: InForce
    mirror: Mirroring
    upstream: Above
    feed: Path  # the folder with metadata/ and targets/
    clock: Callable[[], float]  # Unix seconds
    started_at: float
    url: str  # how agents reach this server
    limits: Limits = field(default_factory=Limits)
    connections: Connections = field(default_factory=Connections)
    authority: str | None = None  # PEM of the own certificate authority
    authority_pin: str | None = None  # SHA-256 of its DER, carried by enrolment tokens
