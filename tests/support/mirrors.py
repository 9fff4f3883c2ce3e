"""A mirror in a folder, what it serves to a client of its own, and contents that change a little.

site = MirrorSite(tmp_path / "mirror", vendor.url, vendor.root)
site.sync()
site.client().plan().release           # as an agent would see it, verified anew
"""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feed import manifest, rollout
from feed.filesource import FileSource
from feed.manifest import Release
from feed.rollout import RolloutPlan
from feed.trust import TrustedFeed
from server.layout import Layout
from server.mirror.mirror import Mirror, SourceSpec, Synced
from server.settings import Policy

PATTERN = "virus-pattern"


def content(version: int, *, size: int = 60_000, seed: int = 1) -> bytes:
    """A file that differs from the version before in a few places, and compresses to half."""
    data = bytearray(random.Random(seed).randbytes(size // 2).hex().encode())
    for step in range(version):
        dice = random.Random(seed * 100_003 + step)
        at = dice.randrange(size - 64)
        data[at : at + 64] = dice.randbytes(32).hex().encode()
    return bytes(data)


class MirrorSite:
    """A mirror that follows `url`; source options as in SourceSpec."""

    def __init__(self, folder: Path, url: str, root: bytes, **options: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.places = Layout(folder)
        self.url = url
        self.root = root
        options = {"room_reserve_bytes": 0} | options
        self.mirror = Mirror(self.places, **options)

    @property
    def feed(self) -> Path:
        """What it serves."""
        return self.places.feed

    def sync(
        self,
        needs: Mapping[str, Mapping[str, int]] | None = None,
        *,
        url: str | None = None,
        policy: Policy | None = None,
        **more: Any,
    ) -> Synced:
        """Once; without a proxy."""
        source = SourceSpec(url=url or self.url, proxy="", authority=more.pop("authority", None))
        return self.mirror.sync(source, self.root, policy=policy, needs=needs, **more)

    def served(self) -> dict[str, str]:
        """{path below the feed: SHA-256} of all that is served."""
        return {
            path.relative_to(self.feed).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.feed.rglob("*"))
            if path.is_file()
        }

    def names(self) -> set[str]:
        """Target paths that are served, without their digests; copies end with .zst."""
        return {
            path.rpartition("/")[0].removeprefix("targets/") + "/" + path.rpartition("/")[2][65:]
            for path in self.served()
            if path.startswith("targets/")
        }

    def client(self, *, beside: Path | None = None) -> Client:
        """A client that has never seen this feed; beside: where it has its own folder."""
        near = (beside or self.places.state).parent
        return Client(self.feed, self.root, Path(tempfile.mkdtemp(prefix="client-", dir=near)))


class Client:
    """Reads a feed's folder as an agent does, with `place` as its own; trusts only the root."""

    def __init__(self, folder: Path, root: bytes, place: Path) -> None:
        self.place = place
        base = folder.as_uri()
        self.feed = TrustedFeed(
            self.place / "trust", f"{base}/metadata", f"{base}/targets", root, FileSource()
        )
        self.feed.refresh()

    def plan(self, region: str = "global") -> RolloutPlan:
        """The plan that is served."""
        return rollout.parse(self.read(manifest.rollout_path(region)), region=region)

    def release(self, region: str = "global") -> Release:
        """The manifest that it offers."""
        offered = self.plan(region).release
        return manifest.parse(self.read(manifest.release_path(offered)), expected_id=offered)

    def read(self, path: str) -> bytes:
        """A verified target."""
        return self.feed.download(path, self.place / "targets").read_bytes()

    def whole_release(self, region: str = "global") -> str:
        """The id of the offered release, after fetching and verifying all of it in full."""
        release = self.release(region)
        for item in release.components:
            data = self.read(manifest.payload_path(item.name, item.version))
            assert hashlib.sha256(data).hexdigest() == item.digest
        return release.id
