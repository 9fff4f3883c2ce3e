"""Power cuts on real file systems, before every durable step and at random instants.

The state folder is on an ext4 or xfs of its own. Its power is cut with the
journal unwritten, or with the journal written and data missing; all processes
are killed; it is mounted again and the machine boots. Every time: what was
said to be durable is there, a whole signed release is active, the attempt ends
as it would have, nothing is stuck, lost or left over.

Without CUTS each durable step has its turn once; CUTS says how many in all. POWER_SEED
draws them. How many it were is printed at the end.
Every course that tests.support.walking prepares is cut: a course more there is
one more kind of attempt here.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from feed import durable
from tests.support import disks, machines, nursery, powercuts, voyage, walking
from tests.support.disks import FORGETFUL, HASTY, IMAGES
from tests.support.endpoint import Endpoint
from tests.support.powercuts import SEED, TALLY, Cut, Tally
from tests.support.shared import once
from tests.support.voyage import Chart, Voyage
from tests.support.walking import TOGETHER, Course, Step

CUTS = int(os.environ.get("CUTS", "0"))
CHUNKS = 6
VOYAGES = 4
EXECUTED = 12
WALKED = (CUTS - EXECUTED) * 2 // 3 if CUTS else None
SAILED = CUTS - EXECUTED - WALKED if WALKED is not None else 80
AT_ONCE = 3  # machines beside each other; half of a cut is waiting
TIMEOUT_S = 300 + 2 * CUTS // CHUNKS

pytestmark = [pytest.mark.system, pytest.mark.timeout(TIMEOUT_S)]

Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def nest(room: None) -> Iterator[nursery.Client]:
    client = nursery.Client()
    yield client
    client.close()


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory, nest: nursery.Client) -> list[Cut]:
    """The cuts of this run, before a durable step each, drawn by the seed."""

    def survey(folder: Path) -> list[Cut]:
        found: list[tuple[Course, Step]] = []
        for number, course in enumerate(walking.prepare(folder, nest)):
            whole = folder / f"whole-{number}"
            points = walking.points(course, whole, nest, boot="survey")
            found += [(course, Step(point, TOGETHER)) for point in points]
        return draw(found)

    return once(tmp_path_factory, "power", survey, list[Cut])


def draw(found: Sequence[tuple[Course, Step]]) -> list[Cut]:
    """WALKED or all of them: none twice in one way, none twice before every other's turn."""
    wanted = len(found) if WALKED is None else WALKED
    lot = random.Random(SEED)
    ways = [(kind, how) for kind in disks.kinds() for how in (FORGETFUL, HASTY)]
    turns = {
        number: lot.sample(ways, len(ways)) for number in lot.sample(range(len(found)), len(found))
    }
    drawn: list[Cut] = []
    while len(drawn) < wanted:
        for number, left in turns.items():
            kind, how = left[len(drawn) // len(found) % len(left)]
            drawn.append(Cut(*found[number], kind, how))
    return drawn[:wanted]


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory, nest: nursery.Client) -> Chart:
    return once(tmp_path_factory, "voyage", lambda folder: voyage.prepare(folder, nest), Chart)


@pytest.mark.parametrize("disk", list(IMAGES), indirect=True)
def test_a_cut_loses_what_was_not_flushed_and_nothing_else(disk: str) -> None:
    with powercuts.station(disk, None) as place:
        folder = place.disk.point
        durable.replace(folder / "flushed", b"1")
        durable.replace(folder / "changed", b"1")
        (folder / "changed").write_bytes(b"")
        durable.replace(folder / "renamed", b"1", flush=False)
        (folder / "written").write_bytes(b"1")
        disks.cut(folder, FORGETFUL)
        with pytest.raises(OSError, match="Input/output error"):
            (folder / "late").write_bytes(b"1")
        place.disk.replug()
        left = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert left == {"flushed": b"1", "changed": b"1"}


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_power_may_fail_before_any_durable_step(
    chunk: int, cuts: list[Cut], nest: nursery.Client, record_property: Record
) -> None:
    began = time.monotonic()
    share = cuts[chunk::CHUNKS]

    def lane(number: int) -> list[str]:
        wrong = []
        with contextlib.ExitStack() as stack:
            places = {
                kind: stack.enter_context(powercuts.station(kind, nest)) for kind in disks.kinds()
            }
            for cut in share[number::AT_ONCE]:
                try:
                    powercuts.walk(cut, places[cut.disk])
                except AssertionError as error:
                    wrong.append(str(error))
        return wrong

    with ThreadPoolExecutor(AT_ONCE) as lanes:
        wrong = [text for texts in lanes.map(lane, range(AT_ONCE)) for text in texts]
    assert not wrong, f"{len(wrong)} of {len(share)} cuts went wrong:\n\n" + "\n\n".join(wrong)
    for cut in share:
        tally = Tally(cut.disk, f"{cut.course.kind}", f"{cut.course.name} {cut.step.point}")
        record_property(TALLY, msgspec.to_builtins(tally))
    record_property(powercuts.TIMES, (len(share), time.monotonic() - began))


@pytest.mark.parametrize("number", range(VOYAGES))
def test_power_may_fail_at_any_instant_of_an_update_loop(
    number: int, chart: Chart, nest: nursery.Client, record_property: Record
) -> None:
    began = time.monotonic()
    legs = [
        SAILED * (i + 1) // (VOYAGES * AT_ONCE) - SAILED * i // (VOYAGES * AT_ONCE)
        for i in range(VOYAGES * AT_ONCE)
    ]

    def sail(lane: int) -> voyage.Log:
        ship = number * AT_ONCE + lane
        kind = disks.kinds()[ship % len(disks.kinds())]
        with powercuts.station(kind, nest) as place:
            lot = random.Random(f"{SEED} {ship}")
            # With one try a cut in a trial is the release's end, with more it goes on.
            sailing = Voyage(chart, place, lot, tries=1 if ship % 3 else 4)
            sailing.sail(legs[ship])
        for state, count in sailing.log.cuts.items():
            for _ in range(count):
                record_property(TALLY, msgspec.to_builtins(Tally(kind, state, None)))
        record_property(powercuts.ENDS, dict(sailing.log.outcomes))
        record_property(powercuts.RECOVERY, sailing.log.recovery_s)
        return sailing.log

    with ThreadPoolExecutor(AT_ONCE) as lanes:
        logs = list(lanes.map(sail, range(AT_ONCE)))
    cut = sum(sum(log.cuts.values()) for log in logs)
    record_property(powercuts.TIMES, (cut, time.monotonic() - began))


@pytest.mark.parametrize("disk", list(IMAGES), indirect=True)
def test_power_may_fail_under_programs_that_were_executed(
    disk: str, tmp_path: Path, record_property: Record
) -> None:
    """The others fork their processes (tests.support.nursery); here nothing is changed."""
    began = time.monotonic()
    vendor = machines.vendor(tmp_path, upto="r173")
    lot = random.Random(f"{SEED} {disk}")
    with powercuts.station(disk, None) as place:
        endpoint = _installed(place.folder, vendor.url)
        place.disk.sync()
        for _ in range(EXECUTED // len(IMAGES)):
            with machines.up(endpoint):
                endpoint.ctl("update", "--no-wait")
                time.sleep(lot.random() * 1.5)  # not for luck: it is the lot
                state = endpoint.status()["state"]["name"]
                disks.cut(place.disk.point, lot.choice((FORGETFUL, HASTY)))
                endpoint.kill()
            place.disk.replug()
            assert endpoint.slot_problems() == []
            record_property(TALLY, msgspec.to_builtins(Tally(disk, state, None)))
        with machines.up(endpoint):
            if endpoint.status()["release"] != "r173":
                assert endpoint.ctl("update").returncode == 0
            machines.untouched(endpoint, "r173")
    record_property(powercuts.TIMES, (EXECUTED // len(IMAGES), time.monotonic() - began))


def _installed(folder: Path, url: str) -> Endpoint:
    """machines.installed, with the state folder's disk already there."""
    state = machines.state("r171")
    shutil.copytree(state, folder / "state", symlinks=True, dirs_exist_ok=True)
    return machines.bare(folder.parent, url, name=folder.name)
