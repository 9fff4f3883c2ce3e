"""A full disk: told before the first byte where it can be foreseen, and never half a release."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from feed import durable
from server.mirror.supply import Progress
from tests.server.mirror.conftest import Chain
from tests.support.mirrors import PATTERN, MirrorSite, content

SIZE = 400_000
STRIDE = 9
NEEDS = {PATTERN: {"171": 1}}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def fill(folder: Path, *, leave: int) -> Path:
    filler = folder / "filler"
    filler.write_bytes(bytes(max(shutil.disk_usage(folder).free - leave, 0)))
    return filler


def leftovers(site: MirrorSite) -> list[Path]:
    places = (site.places.work, site.places.cache)
    return [path for folder in places for path in folder.rglob("*") if path.is_file()]


@pytest.mark.system("mount", "umount")
def test_too_little_room_is_told_before_the_first_byte(chain: Chain, small_disk: Path) -> None:
    site = MirrorSite(small_disk / "m", chain.server.url, chain.vendor.root)
    assert site.sync().outcome == "switched"
    before = site.served()
    chain.vendor.ship("r173", {PATTERN: ("173", content(173, size=SIZE, seed=3))})
    filler = fill(small_disk, leave=200_000)
    chain.server.log.clear()
    done = site.sync()
    assert (done.outcome, done.code) == ("failed", "disk_full"), done
    assert "nothing was downloaded" in done.sentence
    assert "r171 (global) goes on being served" in done.sentence
    assert chain.asked("/components/") == []
    assert site.served() == before
    filler.unlink()
    assert site.sync().outcome == "switched"


@pytest.mark.system("mount", "umount")
def test_a_disk_that_fills_up_meanwhile_leaves_everything_as_it_was(
    chain: Chain, small_disk: Path
) -> None:
    site = MirrorSite(small_disk / "m", chain.server.url, chain.vendor.root)
    site.sync()
    before = site.served()
    chain.vendor.ship("r173", {PATTERN: ("173", content(173, size=SIZE, seed=3))})

    def fill_up(at: Progress) -> None:
        if at.done > 1000:
            fill(small_disk, leave=0)

    done = site.sync(progress=fill_up)
    assert (done.outcome, done.code) == ("failed", "disk_full"), done
    assert site.served() == before
    assert leftovers(site) == []
    assert site.client(beside=chain.site.places.state).whole_release() == "r171"
    (small_disk / "filler").unlink()
    assert site.sync().outcome == "switched"


def test_no_full_disk_at_any_step_leaves_half_a_release(chain: Chain) -> None:
    """Every ninth durable step says once that the disk is full."""
    chain.ship(173)
    number, refusals = 2, 0
    while True:
        passed = 0

        def full(_step: str, where: str, number: int = number) -> None:
            nonlocal passed
            passed += 1
            if passed == number:
                raise OSError(errno.ENOSPC, "No space left on device", where)

        state = chain.site.places.state.parent / f"step-{number}"
        shutil.copytree(chain.site.places.state, state)
        site = MirrorSite(state, chain.vendor.url, chain.vendor.root)
        durable.set_fault_hook(full)
        try:
            done = site.sync(NEEDS)
        finally:
            durable.set_fault_hook(None)
        if passed < number:
            break
        assert done.code in ("", "disk_full"), (number, done)
        refusals += done.outcome == "failed"
        assert site.client().whole_release() in ("r171", "r173"), number
        assert site.sync(NEEDS).outcome in ("switched", "unchanged"), number
        assert site.client().whole_release() == "r173", number
        shutil.rmtree(state)
        number += STRIDE
    assert refusals > 4
