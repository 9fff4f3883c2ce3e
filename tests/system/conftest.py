"""The package that is installed in guests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import packages


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .deb of this checkout."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "popen-gw" in base.name else base
    (found,) = packages.built(shared / "packages", "deb").glob("*.deb")
    return found
