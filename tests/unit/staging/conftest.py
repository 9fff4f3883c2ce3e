"""A vendor with one release, and a machine of its own for each test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.fetcher import cycle
from tests.support.staging import PATTERN, Machine, edition
from tests.support.vendor import Vendor


@pytest.fixture(scope="module")
def first_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vendor's folder after its first release, to be copied: making keys takes a while."""
    folder = tmp_path_factory.mktemp("vendors") / "vendor"
    Vendor(folder).ship("r1", {PATTERN: ("1", edition(1))})
    return folder


@pytest.fixture
def vendor(tmp_path: Path, first_release: Path) -> Vendor:
    shutil.copytree(first_release, tmp_path / "vendor", symlinks=True)
    return Vendor(tmp_path / "vendor")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    words: list[Any] = []
    monkeypatch.setattr(cycle, "say", words.append)
    return words


@pytest.fixture
def machine(tmp_path: Path, vendor: Vendor, said: list[Any]) -> Iterator[Machine]:
    umask = os.umask(0o077)  # a hardened machine: slots are readable all the same
    made = Machine(tmp_path / "machine", vendor.url, root=vendor.root)
    made.said = said
    yield made
    os.umask(umask)
