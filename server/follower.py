"""Keeps the mirror up to date, and says so: one sync at a time, on one task.

Syncs at every start, at the interval of the policy, when an administrator asks
and when the fleet needs other increments. Each is a row of sync_runs; one that
a crash interrupted is closed when the next begins. When agents may find
something new they are told, unless the policy says not to. Between syncs every
file is held against its signature, as often as the policy says.

 * What agents were told of is kept with the round that told them; where what
   is served is another thing, they are told, whatever ended in between.
 * A database or a disk that fails fails one sync, which is tried again; what
   is served goes on being served.
 * A sync or scrub under way stops when the server ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec
import structlog

from server import syncs
from server.errors import BusyError, RefusedError, ServerError, conflict
from server.fleet import needs as needing
from server.layout import Layout
from server.mirror import schedule
from server.mirror.mirror import Mirror
from server.mirror.outcome import SourceSpec, StoppedError, Synced
from server.mirror.record import Record
from server.mirror.signed import Catalogue
from server.mirror.supply import Progress as Done
from server.mirror.wishes import Needs
from server.notify import news
from server.settings import Config
from server.sources import Sources
from server.storage.database import Database
from server.web.inforce import InForce
from server.web.models import Progress, Retention, RetentionChoice, Scrubbed, SourceView

NEEDS_SETTLE_S = 20.0  # agents that come together are fetched for together
NEEDS_APART_S = 60.0
BUSY_AGAIN_S = 60.0
SCRUBS = "scrub"

_log = structlog.get_logger()


class Told(Protocol):
    """Tells the agents that there is something new; returns the round.

    news is the digest of what it is, kept with the round.
    """

    async def __call__(self, *, cause: str, by: str, news: str | None = None) -> int: ...


class Follower:
    """See the module; it is server.web.parts.Mirroring. clock gives Unix seconds."""

    def __init__(
        self,
        database: Database,
        mirror: Mirror,
        config: Config,
        places: Layout,
        *,
        policy: InForce,
        tell: Told,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._mirror = mirror
        self._sources = Sources(database, config, places, policy, clock)
        self._policy = policy
        self._tell = tell
        self._clock = clock
        self._asked: str | None = None
        self._wake = asyncio.Event()
        self._versions_changed = asyncio.Event()
        self._provided: frozenset[tuple[str, str]] = frozenset()  # what the last sync knew of
        self._failures = 0
        self._alone = asyncio.Lock()  # a sync or a scrub
        self._ending = threading.Event()
        self._running = False
        self._done = Done(done=0, total=0, what="")
        self._next_at: float | None = None
        policy.on_change(self._wake.set)

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()

        def heard(_what: str) -> None:
            loop.call_soon_threadsafe(self._versions_changed.set)

        self._database.subscribe(needing.VERSIONS, heard)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow())
                tasks.create_task(self._look_after_needs())
                tasks.create_task(self._scrub_from_time_to_time())
        finally:
            self._ending.set()

    # What administrators ask.

    def sync_now(self) -> None:
        """Sync as soon as may be.

        Raises BusyError: one runs already. RefusedError 409: there is nothing to sync from.
        """
        if self._running:
            raise BusyError("a sync is running; serverctl status shows how far it is")
        if not self._sources.listed() or self._sources.trust_root() is None:
            raise conflict(
                "no source, or no trust root: serverctl source URL --trust-root FILE",
                code="no_source",
            )
        self._ask("administrator")

    def progress(self) -> Progress | None:
        """Where a running sync is; None between two."""
        if not self._running:
            return None
        done = self._done
        return Progress(what=done.what, done_bytes=done.done, total_bytes=done.total)

    def next_at(self) -> float | None:
        """When the next sync begins, Unix seconds."""
        return self._next_at

    async def releases(self) -> tuple[str, ...]:
        """What is offered of what is served, in any region."""
        known = await asyncio.to_thread(self._mirror.known)
        return tuple(sorted({plan.release for plan in known.plans.values()}))

    async def retention(self) -> Retention:
        """Every choice of versions_kept with its cost."""
        policy = self._policy()
        needs = await self._database.read(needing.versions)
        found = await asyncio.to_thread(self._mirror.retention, needs, policy=policy)
        return Retention(
            in_force=policy.versions_kept,
            choices=[
                RetentionChoice(
                    versions_kept=item.versions_kept,
                    bytes=item.disk_bytes,
                    agents_to_fulls=item.agents,
                )
                for item in found
            ],
        )

    async def scrub_now(self) -> Scrubbed:
        """Hold every file against its signature; what was damaged is fetched again.

        Raises BusyError: a sync or another scrub runs. RefusedError 503: the server ends.
        """
        if self._alone.locked():
            raise BusyError("a sync or scrub runs already")
        async with self._alone:
            try:
                found = await asyncio.to_thread(self._mirror.scrub, progress=self._show)
            except StoppedError as error:
                raise RefusedError(str(error), status=503, code=error.code) from error
        if found.damaged:
            _log.error("files_damaged", detail=found.sentence)
            self._ask(SCRUBS)
        return Scrubbed(
            sentence=found.sentence,
            checked=found.files,
            damaged=[item.path for item in found.damaged],
            repaired=[item.path for item in found.damaged if item.restored],
        )

    async def source(self) -> SourceView:
        """Where it updates from, and the digest of the root it trusts."""
        return await self._sources.view()

    async def set_source(self, *, url: str | None, trust_root: str | None, by: str) -> SourceView:
        """Change what isn't None, and sync. Raises RefusedError as server.sources does."""
        seen = await self._sources.change(url=url, trust_root=trust_root, by=by)
        self._ask("source")
        return seen

    # The task that syncs.

    def _ask(self, trigger: str) -> None:
        self._asked = trigger
        self._wake.set()

    async def _follow(self) -> None:
        trigger = "start"
        while True:
            try:
                await self._sync_once(trigger)
            except (ServerError, OSError) as error:
                self._failures += 1
                _log.error("sync_broke", trigger=trigger, problem=str(error))
            trigger = await self._next_trigger()

    async def _next_trigger(self) -> str:
        ticks = asyncio.get_running_loop().time  # whatever becomes of the wall clock
        began, wall = ticks(), self._clock()
        while self._asked is None:
            self._wake.clear()
            delay = schedule.delay_s(
                interval_s=self._policy().sync_interval_s, failures=self._failures
            )
            self._next_at = wall + delay
            left = began + delay - ticks()
            if left <= 0:
                return "schedule"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wake.wait()
        trigger, self._asked = self._asked, None
        return trigger

    async def _sync_once(self, trigger: str) -> None:
        sources, root = self._sources.listed(), self._sources.trust_root()
        if not sources or root is None:
            _log.info("sync_not_configured", has_source=bool(sources), has_root=root is not None)
        else:
            await self._sync(sources, root, trigger)
        await self._tell_of_news()

    async def _sync(self, sources: tuple[SourceSpec, ...], root: bytes, trigger: str) -> None:
        async with self._alone:
            with self._busy():
                began = self._clock()
                row = await self._database.write(
                    lambda session: syncs.begin(session, trigger, began)
                )
                done = await self._try_sources(sources, root, trigger)
                ended = self._clock()
                await self._database.write(lambda session: syncs.end(session, row, done, ended))
                self._failures = self._failures + 1 if done.outcome == "failed" else 0

    async def _tell_of_news(self) -> None:
        if not self._policy().distribute_automatically:
            return
        known = await asyncio.to_thread(self._mirror.known)
        digest = _offered(known)
        if known.plans and digest != await self._database.read(news.told):
            await self._tell(cause="release", by="mirror", news=digest)

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        self._running, self._next_at = True, None
        self._done = Done(done=0, total=0, what="")
        try:
            yield
        finally:
            self._running = False

    async def _try_sources(
        self, sources: tuple[SourceSpec, ...], root: bytes, trigger: str
    ) -> Synced:
        """What came of the first source that can be used; else of the first."""
        needs = await self._database.read(needing.versions)
        self._provided = _pairs(needs)
        failed: Synced | None = None
        for source in sources:
            done = await asyncio.to_thread(
                self._mirror.sync,
                source,
                root,
                policy=self._policy(),
                needs=needs,
                trigger=trigger,
                progress=self._show,
            )
            if done.outcome != "failed":
                return done
            failed = failed or done
        if failed is None:
            raise ValueError("expected at least one source")
        return failed

    def _show(self, done: Done) -> None:
        """On the thread that syncs. Raises StoppedError: the server ends."""
        if self._ending.is_set():
            raise StoppedError("the server ends; it goes on at its next start")
        self._done = done

    # The task that watches what the fleet runs.

    async def _look_after_needs(self) -> None:
        """Sync when agents run versions for which increments may be lacking.

        Only versions that the vendor signed count: agents may say what they like.
        """
        while True:
            await self._versions_changed.wait()
            await asyncio.sleep(NEEDS_SETTLE_S)
            self._versions_changed.clear()
            try:
                needs = await self._database.read(needing.versions)
            except ServerError as error:
                _log.error("needs_unknown", problem=str(error))
                self._versions_changed.set()  # looked at again
                continue
            signed = _signed((await asyncio.to_thread(self._mirror.known)).catalogue)
            if not _pairs(needs) & signed <= self._provided and self._asked is None:
                self._ask("needs")
                await asyncio.sleep(NEEDS_APART_S)

    # The task that scrubs.

    async def _scrub_from_time_to_time(self) -> None:
        delay = self._policy().scrub_interval_s
        while True:
            await asyncio.sleep(delay)
            try:
                await self.scrub_now()
            except BusyError:
                delay = BUSY_AGAIN_S
            except (ServerError, OSError) as error:
                _log.error("scrub_failed", problem=str(error))
                delay = self._policy().scrub_interval_s
            else:
                delay = self._policy().scrub_interval_s


def _offered(known: Record) -> str:
    """A digest of all that decides what agents install."""
    return hashlib.sha256(
        msgspec.json.encode((known.plans, known.releases), order="sorted")
    ).hexdigest()


def _signed(catalogue: Catalogue) -> frozenset[tuple[str, str]]:
    """Every component with each version from which or to which something signed leads."""
    found = {
        (name, payload.version)
        for name, part in catalogue.parts.items()
        for payload in part.payloads
    }
    found |= {
        (name, which)
        for name, part in catalogue.parts.items()
        for edge in part.edges
        for which in (edge.old, edge.new)
    }
    return frozenset(found)


def _pairs(needs: Needs) -> frozenset[tuple[str, str]]:
    """Every component with each version that is run of it."""
    return frozenset((name, which) for name, found in needs.items() for which in found)
