"""The packages that these tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import packages


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a .deb and an .rpm of this checkout."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "popen-gw" in base.name else base
    return packages.built(shared / "packages", "deb", "rpm")


@pytest.fixture
def debian(dist: Path) -> Path:
    """The .deb."""
    (package,) = dist.glob("*.deb")
    return package


@pytest.fixture
def fedora(dist: Path) -> Path:
    """The .rpm."""
    (package,) = dist.glob("*.rpm")
    return package
