"""The package that is installed in guests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import packages


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent's .deb of this checkout."""
    return packages.package_of(packages.AGENT, "deb", packages.built(tmp_path_factory))
