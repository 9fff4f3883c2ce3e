"""SIGKILL and power cuts at the durable steps of a sync: the old release or the new one, whole.

A child syncs and is killed at a step; then a client reads what is served, the
mirror syncs again, and what it serves is what a sync that nobody killed does.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from feed import durable
from server.settings import Policy
from tests.support import disks
from tests.support.mirrors import PATTERN, MirrorSite, content
from tests.support.vendor import Vendor

MEMORY = Path("/dev/shm")  # SIGKILL loses no written page
STRIDE = int(os.environ.get("MIRROR_STRIDE", "3"))  # 1 walks every step
CUTS = 10
NEEDS = {PATTERN: {"169": 1, "171": 3}}
POLICY = Policy(versions_kept=1)  # so that there is something to prune

Act = Callable[[], None]


@pytest.fixture(scope="module")
def ground() -> Iterator[Path]:
    home = MEMORY if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="mirror-", dir=home) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def vendor(ground: Path) -> Vendor:
    """r173 and an engine are out, with a new key for the timestamp; `before` serves r171."""
    made = Vendor(ground / "vendor")
    for version in (169, 171):
        made.ship(f"r{version}", {PATTERN: (str(version), content(version))})
        assert MirrorSite(ground / "before", made.url, made.root).sync(policy=POLICY).switched
    made.rotate("timestamp")
    made.ship("r173", {PATTERN: ("173", content(173)), "engine": ("1", content(1, seed=5))})
    return made


@pytest.fixture(scope="module")
def points(vendor: Vendor, ground: Path) -> list[tuple[str, str]]:
    """The durable steps of a sync that nobody kills."""
    found: list[tuple[str, str]] = []
    site = MirrorSite(_copy(ground, "whole"), vendor.url, vendor.root)
    durable.set_fault_hook(lambda step, where: found.append((step, where)))
    try:
        assert site.sync(NEEDS, policy=POLICY).switched
    finally:
        durable.set_fault_hook(None)
    return found


def _copy(ground: Path, name: str) -> Path:
    shutil.copytree(ground / "before", ground / name)
    return ground / name


def _die_at(site: MirrorSite, number: int, before: Act = lambda: None) -> None:
    """Sync in a child that is killed at its durable step `number`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a worker of pytest has threads
        child = os.fork()
    if child == 0:
        _sync_until(site, number, before)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"step {number} was never reached"


def _sync_until(site: MirrorSite, number: int, before: Act) -> None:
    passed = 0

    def hook(_step: str, _where: str) -> None:
        nonlocal passed
        passed += 1
        if passed == number:
            before()
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        durable.set_fault_hook(hook)
        site.sync(NEEDS, policy=POLICY)
    finally:
        os._exit(3)


def _check(site: MirrorSite, whole: MirrorSite, *, where: object) -> str:
    """The release that is served after a fall; then the mirror ends what it began.

    A scrub comes first: all that is served is sound, and it stays.
    """
    site = MirrorSite(site.places.state, site.url, site.root)  # as the server starts
    scrubbed = site.mirror.scrub()
    assert scrubbed.damaged == (), (where, scrubbed)
    release = site.client().whole_release()
    assert release in ("r171", "r173"), where
    done = site.sync(NEEDS, policy=POLICY)
    assert done.outcome in ("switched", "unchanged"), (where, done)
    assert site.client().whole_release() == "r173", where
    assert site.served() == whole.served(), where
    assert [path for path in site.places.work.rglob("*") if path.is_file()] == [], where
    return release


def test_a_sync_survives_sigkill_at_its_durable_steps(
    vendor: Vendor, points: list[tuple[str, str]], ground: Path
) -> None:
    whole = MirrorSite(ground / "whole", vendor.url, vendor.root)
    seen = set()
    for number in range(1, len(points) + 1, STRIDE):
        site = MirrorSite(_copy(ground, f"fall-{number}"), vendor.url, vendor.root)
        _die_at(site, number)
        seen.add(_check(site, whole, where=points[number - 1]))
        shutil.rmtree(site.places.state)
    assert seen == {"r171", "r173"}
    assert len(points) > 60


def test_a_first_sync_that_is_killed_serves_nothing_or_all(
    vendor: Vendor, points: list[tuple[str, str]], ground: Path
) -> None:
    for number in range(5, len(points), 4 * STRIDE):
        site = MirrorSite(ground / f"first-{number}", vendor.url, vendor.root)
        _die_at(site, number)
        site = MirrorSite(site.places.state, vendor.url, vendor.root)
        if (site.feed / "metadata/timestamp.json").exists():
            assert site.client().whole_release() == "r173", points[number - 1]
        assert site.sync(NEEDS, policy=POLICY).outcome in ("switched", "unchanged")
        assert site.client().whole_release() == "r173", points[number - 1]
        shutil.rmtree(site.places.state)


@pytest.mark.system("mount", "losetup", "mkfs.ext4")
def test_a_sync_survives_power_cuts(
    vendor: Vendor, points: list[tuple[str, str]], ground: Path, tmp_path: Path
) -> None:
    if why := disks.missing():
        pytest.skip(why)
    whole = MirrorSite(ground / "whole", vendor.url, vendor.root)
    with disks.own_mounts(), disks.Disk("ext4", ground, tmp_path / "disk") as disk:
        state = disk.point / "state"
        for number in range(2, len(points), max(len(points) // CUTS, 1)):
            disk.wipe()
            shutil.copytree(ground / "before", state)
            disk.sync()
            site = MirrorSite(state, vendor.url, vendor.root)
            _die_at(site, number, lambda: disks.cut(disk.point, disks.FORGETFUL))
            disk.replug()
            _check(site, whole, where=points[number - 1])
