"""One guest for all of these tests: each finds it on a good release and at rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import packages, rootfs
from tests.support.guest import NEEDS, Guest, NoGuestError
from tests.support.vendor import Vendor
from tests.system.systemd.machine import Machine

LIMIT_S = rootfs.MAKING_S + 300  # the first test makes and boots the guest too


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.parent == here:
            item.add_marker(pytest.mark.system(*NEEDS))
            item.add_marker(pytest.mark.timeout(LIMIT_S))


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's .deb of this checkout."""
    return packages.package_of(packages.SERVER, "deb", packages.built(tmp_path_factory))


@pytest.fixture(scope="session")
def _guest(tmp_path_factory: pytest.TempPathFactory, package: Path) -> Iterator[Machine]:
    vendor = Vendor(tmp_path_factory.mktemp("guest") / "vendor")
    with rootfs.disk() as disk:
        guest = Guest(disk, feed=vendor.feed)
        try:
            guest.boot()
            yield Machine(guest, vendor, package)
        except NoGuestError as error:
            pytest.skip(f"no system can be booted here: {error}")
        finally:
            guest.close()


@pytest.fixture
def machine(_guest: Machine) -> Machine:
    _guest.make_ready()
    return _guest
