"""A disk that refuses one call of an update or a revert: each in turn.

EIO hits one call of those that open for writing, write, flush, rename, make or
delete; ENOSPC hits one that takes room and all such calls after it, until the
disk is well again. Every time: what runs stays whole, the error is told, and
the next attempt ends as the first would have.

Without BAD_CALLS each write, flush and rename of an update and of a revert has its
turn, and some of the others; BAD_CALLS is how many of all, by lot, 0: all of them.
POWER_SEED draws them.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import illness, nursery, walking
from tests.support.badcalls import GROWING, Illness
from tests.support.illness import TALLY
from tests.support.shared import once
from tests.support.walking import Course

COUNT = int(os.environ["BAD_CALLS"]) if "BAD_CALLS" in os.environ else None
SURE = {"write", "fsync", "rename"}
OTHERS = 60
SEED = int(os.environ.get("POWER_SEED", "1"))
CHUNKS = 6
AT_ONCE = 3
MEMORY = Path("/dev/shm")

Suffered = list[tuple[Course, Illness]]

pytestmark = pytest.mark.timeout(3600 if COUNT == 0 else 300)


@pytest.fixture(scope="module")
def nest() -> Iterator[nursery.Client]:
    client = nursery.Client()
    yield client
    client.close()


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, nest: nursery.Client) -> Suffered:
    return once(tmp_path_factory, "illness", lambda folder: survey(folder, nest), Suffered)


def survey(folder: Path, nest: nursery.Client) -> Suffered:
    """Every way in which the disk can refuse a call."""
    found: Suffered = []
    for course in walking.prepare(folder, nest):
        if course.kind in {"update", "revert"}:
            calls = illness.calls(course, folder / f"calls-{course.name}", nest)
            found += [(course, Illness(call=call, error="EIO")) for call in calls]
            full = (call for call in calls if call.step in GROWING)
            found += [(course, Illness(call=call, error="ENOSPC", lasting=True)) for call in full]
    return found


def draw(found: Suffered) -> Suffered:
    """Those that are suffered in this run."""
    lot = random.Random(SEED)
    if COUNT is not None:
        return lot.sample(found, COUNT or len(found))
    sure = [item for item in found if is_sure(*item)]
    others = [item for item in found if not is_sure(*item)]
    return lot.sample(sure, len(sure)) + lot.sample(others, OTHERS)


def is_sure(course: Course, illness: Illness) -> bool:
    assert illness.call
    return course.name in {"update", "revert"} and illness.call.step in SURE


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_a_call_that_the_disk_refuses_costs_at_most_the_attempt(
    chunk: int,
    everything: Suffered,
    nest: nursery.Client,
    record_property: Callable[[str, object], None],
) -> None:
    home = MEMORY if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="illness-", dir=home) as ground:

        def suffer(given: tuple[Course, Illness]) -> tuple[str, str | None]:
            place = Path(tempfile.mkdtemp(dir=ground), "m")
            try:
                return illness.suffer(*given, place, nest), None
            except AssertionError as error:
                return "", str(error)

        share = draw(everything)[chunk::CHUNKS]
        with ThreadPoolExecutor(AT_ONCE) as machines:
            ends = list(machines.map(suffer, share))
    wrong = [text for _, text in ends if text]
    assert not wrong, f"{len(wrong)} of {len(share)} went wrong:\n\n" + "\n\n".join(wrong)
    for (course, refused), (end, _) in zip(share, ends, strict=True):
        record_property(TALLY, (course.name, refused.error, end))


def test_calls_of_every_process_can_be_refused(everything: Suffered) -> None:
    refused = {(item.call.process, item.call.step) for _, item in everything if item.call}
    for process in ("guardian", "worker", "stager"):
        for call in ("write", "fsync", "rename"):
            assert (process, call) in refused
