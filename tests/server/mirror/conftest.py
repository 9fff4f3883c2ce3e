"""A vendor that has shipped r171, a server before its feed, and a mirror that follows it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.feedserver import FeedServer
from tests.support.mirrors import PATTERN, MirrorSite, content
from tests.support.vendor import Vendor


@dataclass
class Chain:
    """vendor → server → site; the site has synced r171."""

    vendor: Vendor
    server: FeedServer
    site: MirrorSite

    def ship(self, version: int) -> None:
        """Publish and offer r<version>."""
        self.vendor.ship(f"r{version}", {PATTERN: (str(version), content(version))})

    def asked(self, part: str) -> list[str]:
        """The paths asked for that have `part` in them."""
        return [path for path in self.server.paths if part in path]


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A desk to copy, that has shipped r171."""
    made = Vendor(tmp_path_factory.mktemp("desk") / "vendor")
    made.ship("r171", {PATTERN: ("171", content(171))})
    return made.folder


@pytest.fixture
def vendor(tmp_path: Path, shipped: Path) -> Vendor:
    return Vendor(shutil.copytree(shipped, tmp_path / "vendor"))


@pytest.fixture
def chain(tmp_path: Path, vendor: Vendor) -> Iterator[Chain]:
    with FeedServer(vendor.feed) as server:
        site = MirrorSite(tmp_path / "m", server.url, vendor.root)
        assert site.sync().outcome == "switched"
        server.log.clear()
        yield Chain(vendor, server, site)
