"""Origin mode: a publisher's feed folder is served as it is, and watched.

The publisher replaces `metadata/timestamp.json` last, so a change of that file
is a new release, plan or signature. Looking costs one stat; nothing tells a
process of a change in a folder that works on every file system.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import structlog

from server.follower import Told

LOOK_S = 2.0

_log = structlog.get_logger()


class Origin:
    """Tells the agents whenever the snapshot changes."""

    def __init__(self, feed: Path, *, tell: Told) -> None:
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
                _log.info("feed_changed", feed=str(self._timestamp.parent.parent))
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
