"""The packages that these tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import packages


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a .deb and an .rpm of each product of this checkout."""
    return packages.built(tmp_path_factory)


@pytest.fixture(params=list(packages.PRODUCTS))
def product(request: pytest.FixtureRequest) -> packages.Product:
    """The agent, then the server."""
    return packages.PRODUCTS[request.param]


@pytest.fixture
def debian(dist: Path) -> Path:
    """The agent's .deb."""
    return packages.package_of(packages.AGENT, "deb", dist)


@pytest.fixture
def fedora(dist: Path) -> Path:
    """The agent's .rpm."""
    return packages.package_of(packages.AGENT, "rpm", dist)


@pytest.fixture
def server(dist: Path) -> Path:
    """The server's .deb."""
    return packages.package_of(packages.SERVER, "deb", dist)
