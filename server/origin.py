"""Origin mode: a publisher's feed folder is served as it is, and watched.

The publisher replaces `metadata/timestamp.json` last, so a change of that file
is a new release, plan or signature. Looking costs one stat; nothing tells a
process of a change in a folder that works on every file system.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import structlog

from feed import rollout
from feed.errors import FeedError
from feed.filesource import FileSource
from feed.trust import TrustedFeed
from server.errors import ServerError, conflict
from server.follower import Told
from server.notify import news
from server.storage.database import Database
from server.web.models import Progress, Retention, Scrubbed, SourceView

LOOK_S = 2.0
VERIFIED_FOR_S = 300.0

_log = structlog.get_logger()


class Origin:
    """Tells the agents whenever the feed changes; it is server.web.parts.Mirroring, too,
    and mirrors nothing."""

    def __init__(self, feed: Path, trust: Path, database: Database, *, tell: Told) -> None:
        self._database = database
        self._trust = trust
        self._feed = feed
        self._timestamp = feed / "metadata" / "timestamp.json"
        self._tell = tell
        self._stat: tuple[int, int, int] | None = None
        self._digest = ""
        self._untold = False
        self._looking = threading.Lock()
        self._found: tuple[str, float, tuple[str, ...]] = "", 0.0, ()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                if self._is_changed() or self._untold:
                    await self._tell_of_news()
            except (ServerError, OSError) as error:
                _log.error("change_not_told", feed=str(self._feed), problem=str(error))
            await asyncio.sleep(LOOK_S)

    async def _tell_of_news(self) -> None:
        """Unless agents were told of just this, before the process was started anew."""
        self._untold = True
        if self._digest != await self._database.read(news.told):
            _log.info("feed_changed", feed=str(self._feed))
            await self._tell(cause="release", by="publisher", news=self._digest)
        self._untold = False

    def _is_changed(self) -> bool:
        """Whether it holds other bytes than when last looked at."""
        try:
            found = self._timestamp.stat()
            stat = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stat == self._stat:
                return False
            digest = hashlib.sha256(self._timestamp.read_bytes()).hexdigest()
        except OSError:
            return False  # a feed that isn't there yet, or is being moved
        self._stat = stat
        changed, self._digest = digest != self._digest, digest
        return changed

    # What administrators ask: of what is here.

    def sync_now(self) -> None:
        """Raises RefusedError: there is nothing to sync from."""
        raise conflict("this server serves a publisher's folder; publisher publish changes it")

    def progress(self) -> Progress | None:
        """Never at anything."""
        return None

    def next_at(self) -> float | None:
        """Never."""
        return None

    async def releases(self) -> tuple[str, ...]:
        """What the folder's plans offer."""
        return await asyncio.to_thread(self._offered)

    async def retention(self) -> Retention:
        """Raises RefusedError: nothing is kept here that the publisher doesn't keep."""
        raise conflict("a publisher's folder holds what the publisher keeps")

    async def scrub_now(self) -> Scrubbed:
        """Raises RefusedError."""
        raise conflict("publisher show verifies a publisher's folder")

    async def source(self) -> SourceView:
        """The folder."""
        root = await asyncio.to_thread(self._root)
        return SourceView(
            url=self._feed.as_uri(),
            trust_root_sha256=hashlib.sha256(root).hexdigest() if root else None,
            from_file=True,
        )

    async def set_source(self, *, url: str | None, trust_root: str | None, by: str) -> SourceView:  # noqa: ARG002 - the protocol's
        """Raises RefusedError: the server's file names the folder."""
        raise conflict("the folder is named in the server's file; change origin there")

    def _offered(self) -> tuple[str, ...]:
        """By the signed plans in force; a feed that doesn't verify offers nothing.

        Verified once for each timestamp, and again from time to time: it expires. By one
        thread at a time.
        """
        with self._looking:
            try:
                digest = hashlib.sha256(self._timestamp.read_bytes()).hexdigest()
                if digest != self._found[0] or time.monotonic() >= self._found[1]:
                    found = tuple(sorted(self._plans()))
                    self._found = digest, time.monotonic() + VERIFIED_FOR_S, found
            except (FeedError, OSError) as error:
                _log.warning("feed_unusable", feed=str(self._feed), problem=str(error))
                return ()
            return self._found[2]

    def _root(self) -> bytes | None:
        try:
            return (self._feed / "metadata" / "1.root.json").read_bytes()
        except OSError:
            return None

    def _plans(self) -> Iterator[str]:
        base = self._feed.absolute().as_uri()
        root = (self._feed / "metadata" / "1.root.json").read_bytes()
        urls = f"{base}/metadata", f"{base}/targets"
        feed = TrustedFeed(self._trust, *urls, root, FileSource())
        feed.refresh()
        for target in feed.everything():
            folder, _, name = target.path.rpartition("/")
            if folder == "rollout":
                served = self._feed / "targets" / folder / f"{target.hashes['sha256']}.{name}"
                yield rollout.parse(served.read_bytes(), region=name.removesuffix(".json")).release
