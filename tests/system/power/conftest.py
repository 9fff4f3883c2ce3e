"""Where disks can be mounted, and which there are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import disks


@pytest.fixture(scope="module", autouse=True)
def room() -> Iterator[None]:
    """Where disks can be mounted; the programs under test are started in it."""
    if why := disks.missing():
        pytest.skip(why)
    with disks.own_mounts():
        yield


@pytest.fixture
def disk(request: pytest.FixtureRequest, room: None) -> str:
    """A kind of file system; skipped where there is none of it."""
    kind: str = request.param
    if kind not in disks.kinds():
        pytest.skip(f"needs mkfs.{kind} and a kernel that mounts it")
    return kind
