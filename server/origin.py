"""Origin mode: a publisher's feed folder is served as it is, and watched.

The publisher replaces `metadata/timestamp.json` last, so a change of that file
is a new release, plan or signature. Looking costs one stat; nothing tells a
process of a change in a folder that works on every file system.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path

import structlog

from feed import rollout
from feed.errors import FeedError
from feed.filesource import FileSource
from feed.trust import TrustedFeed
from server.errors import conflict
from server.follower import Told
from server.web.models import Progress, Retention, Scrubbed, SourceView

LOOK_S = 2.0

_log = structlog.get_logger()


class Origin:
    """Tells the agents whenever the feed changes; it is server.web.parts.Mirroring, too,
    and mirrors nothing."""

    def __init__(self, feed: Path, trust: Path, *, tell: Told) -> None:
        self._trust = trust
        self._feed = feed
        self._timestamp = feed / "metadata" / "timestamp.json"
        self._tell = tell
        self._stat: tuple[int, int, int] | None = None
        self._digest = ""

    async def run(self) -> None:
        """Until cancelled."""
        self._is_changed()
        while True:
            await asyncio.sleep(LOOK_S)
            if self._is_changed():
                _log.info("feed_changed", feed=str(self._feed))
                await self._tell(cause="release", by="publisher")

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
        return SourceView(url=self._feed.as_uri(), trust_root_sha256=None, from_file=True)

    async def set_source(self, *, url: str | None, trust_root: str | None, by: str) -> SourceView:  # noqa: ARG002 - the protocol's
        """Raises RefusedError: the server's file names the folder."""
        raise conflict("the folder is named in the server's file; change origin there")

    def _offered(self) -> tuple[str, ...]:
        """By the signed plans in force; a feed that doesn't verify offers nothing."""
        try:
            return tuple(sorted(self._plans()))
        except (FeedError, OSError) as error:
            _log.warning("feed_unusable", feed=str(self._feed), problem=str(error))
            return ()

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
