"""Keeps the mirror up to date, and says so: one sync at a time, on one task.

Syncs at every start, at the interval of the policy, when an administrator asks
and when the fleet needs other increments. Each is a row of sync_runs; one that
a crash interrupted is closed at the next start. After a switch the agents are
told, unless the policy says not to.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Protocol

import structlog
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from feed.errors import FeedError
from feed.source import public_url
from server.accounts import policy as policies
from server.errors import BusyError, ServerError
from server.fleet import needs as needing
from server.layout import Layout
from server.mirror import schedule
from server.mirror.sync import Mirror, SourceSpec, Synced
from server.settings import Config, Policy
from server.storage.database import Database
from server.storage.tables import SyncRun

NEEDS_SETTLE_S = 20.0  # agents that enrol together are asked for together
ROWS_KEPT = 1000

_log = structlog.get_logger()


class Told(Protocol):
    """Tells the agents that there is something new."""

    async def __call__(self, *, cause: str, by: str) -> int: ...


class Follower:
    """See the module. clock gives Unix seconds."""

    def __init__(
        self,
        database: Database,
        mirror: Mirror,
        config: Config,
        places: Layout,
        *,
        tell: Told,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._mirror = mirror
        self._config = config
        self._places = places
        self._tell = tell
        self._clock = clock
        self._asked: str | None = None
        self._wake = asyncio.Event()
        self._failures = 0
        self._running = False
        self._progress = ("", 0, 0)
        self.next_at: float | None = None

    @property
    def progress(self) -> dict[str, object] | None:
        """What a running sync is at, None between two."""
        if not self._running:
            return None
        what, done, total = self._progress
        return {"what": what, "done_bytes": done, "total_bytes": total}

    def ask(self, trigger: str) -> None:
        """Sync as soon as may be. Raises BusyError: one runs already."""
        if self._running:
            raise BusyError("a sync is running; serverctl status shows how far it is")
        self._asked = trigger
        self._wake.set()

    def ask_for_needs(self) -> None:
        """The fleet runs something new: an increment may be lacking."""
        if self._asked is None and not self._running:
            asyncio.get_running_loop().call_later(NEEDS_SETTLE_S, self._needs_settled)
            self._asked = "needs"

    def _needs_settled(self) -> None:
        if self._asked == "needs":
            self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        await self._database.write(lambda session: _close_interrupted(session, self._clock()))
        trigger = "start"
        while True:
            await self._sync_once(trigger)
            trigger = await self._next_trigger()

    async def _next_trigger(self) -> str:
        policy = await self._database.read(policies.load)
        delay = schedule.delay_s(interval_s=policy.sync_interval_s, failures=self._failures)
        self.next_at = self._clock() + delay
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._wake.wait()
        self._wake.clear()
        trigger, self._asked = self._asked or "schedule", None
        return trigger

    def policy_changed(self) -> None:
        """Go by the new interval from now on."""
        if not self._running:
            self._asked = self._asked or "policy"
            self._wake.set()

    async def _sync_once(self, trigger: str) -> None:
        policy = await self._database.read(policies.load)
        sources, root = self._sources(policy), self._trust_root()
        if not sources or root is None:
            _log.info("sync_not_configured", has_source=bool(sources), has_root=root is not None)
            return
        with self._busy():
            began = self._clock()
            run = await self._database.write(lambda session: _begin(session, trigger, began))
            needs = await self._database.read(needing.versions)
            done, source = await self._try_sources(sources, root, policy, needs)
            self._failures = self._failures + 1 if done.outcome == "failed" else 0
            await self._database.write(
                lambda session: _end(session, run, done, source, self._clock())
            )
        _log.info("sync_ended", trigger=trigger, **_shown(done, source))
        if done.switched and policy.distribute_automatically:
            await self._tell(cause="release", by="mirror")

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        self._running, self.next_at = True, None
        try:
            yield
        finally:
            self._running = False

    async def _try_sources(
        self, sources: tuple[SourceSpec, ...], root: bytes, policy: Policy, needs: needing.Needs
    ) -> tuple[Synced, str]:
        """The first source that can be used; else what went wrong with the first."""
        failed: tuple[Synced, str] | None = None
        for source in sources:
            name = public_url(source.url)
            try:
                done = await asyncio.to_thread(
                    self._mirror.sync,
                    source,
                    root,
                    policy=policy,
                    needs=needs,
                    progress=self._show_progress,
                )
            except (FeedError, ServerError, OSError) as error:
                code = getattr(error, "code", "io_error")
                _log.warning("source_failed", source=name, code=code, problem=str(error))
                failed = failed or (Synced.failed(code=code, sentence=str(error)), name)
            else:
                return done, name
        assert failed is not None  # noqa: S101 - there is at least one source
        return failed

    def _show_progress(self, what: str, done: int, total: int) -> None:
        self._progress = (what, done, total)

    def _sources(self, policy: Policy) -> tuple[SourceSpec, ...]:
        if self._config.sources:
            return tuple(
                SourceSpec(url=item.url, proxy=item.proxy, authority=_pem(item.authority))
                for item in self._config.sources
            )
        return (SourceSpec(url=policy.source),) if policy.source else ()

    def _trust_root(self) -> bytes | None:
        path = self._places.given_root
        if self._config.trust_root is not None:
            path = Path(self._config.trust_root)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


def _pem(path: str | None) -> str | None:
    return Path(path).read_text(encoding="ascii") if path is not None else None


def _shown(done: Synced, source: str) -> dict[str, object]:
    return {
        "outcome": done.outcome,
        "source": source,
        "fetched_bytes": done.fetched_bytes,
        "saved_bytes": done.saved_bytes,
        "detail": done.sentence,
    }


def _begin(session: Session, trigger: str, now: float) -> int:
    row = SyncRun(trigger=trigger, started_at=now, outcome="running")
    session.add(row)
    session.flush()
    return row.id


def _end(session: Session, run: int, done: Synced, source: str, now: float) -> None:
    session.execute(
        update(SyncRun)
        .where(SyncRun.id == run)
        .values(
            ended_at=now,
            outcome=done.outcome,
            source=source,
            sentence=done.sentence,
            code=done.code,
            fetched_bytes=done.fetched_bytes,
            saved_bytes=done.saved_bytes,
        )
    )
    oldest = session.scalar(
        select(SyncRun.id).order_by(SyncRun.id.desc()).offset(ROWS_KEPT).limit(1)
    )
    if oldest is not None:
        session.query(SyncRun).where(SyncRun.id <= oldest).delete()


def _close_interrupted(session: Session, now: float) -> None:
    session.execute(
        update(SyncRun)
        .where(SyncRun.outcome == "running")
        .values(
            outcome="failed",
            code="interrupted",
            ended_at=now,
            sentence="the server ended in the middle; what was served before is served still",
        )
    )


Announcement = Callable[[], Awaitable[None]]
