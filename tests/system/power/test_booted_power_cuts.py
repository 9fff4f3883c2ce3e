"""The power of a whole machine fails: the guest's root is the disk that is cut.

Each of booted.MOMENTS on one kind of file system, some drawn by POWER_SEED on
the other.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.support import powercuts, rootfs
from tests.support.disks import IMAGES
from tests.support.guest import NEEDS, NoGuestError
from tests.support.powercuts import SEED, TALLY, Tally
from tests.support.vendor import Vendor
from tests.system.power import booted

LIMIT_S = rootfs.MAKING_S + 600
DRAWN = {"ext4": len(booted.MOMENTS), "xfs": 3}

pytestmark = [pytest.mark.system(*NEEDS), pytest.mark.timeout(LIMIT_S)]


@pytest.mark.parametrize("disk", list(IMAGES), indirect=True)
def test_power_may_fail_under_a_whole_system(
    disk: str, package: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    lot = random.Random(f"{SEED} booted {disk}")
    moments = lot.sample(booted.MOMENTS, DRAWN[disk])
    cuts: list[str] = []
    try:
        with booted.booted(disk, package, Vendor(tmp_path / "vendor"), lot) as machine:
            began = time.monotonic()
            for moment in moments:
                cuts += machine.go_through(moment, tmp_path)
    except NoGuestError as error:
        pytest.skip(f"no system can be booted here: {error}")
    for during in cuts:
        tally = Tally(disk, during, None, booted=True)
        record_property(TALLY, msgspec.to_builtins(tally))
    record_property(powercuts.BOOTED_TIMES, (len(cuts), time.monotonic() - began))
