"""SIGKILL at every durable step of an update, a revert and a recovery.

Each fall is on a fresh copy of a prepared machine. Afterwards: the active slot
is whole, the attempt ends as it would have, nothing is stuck, lost or left.
How many points were walked is printed at the end of the run.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import nursery, walking
from tests.support.crashing import TALLY
from tests.support.shared import once
from tests.support.walking import Course, Step

CHUNKS = 12
AT_ONCE = 3  # machines beside each other; most of a fall is waiting
MEMORY = Path("/dev/shm")  # SIGKILL loses no written page: the walk needs no disk under it

pytestmark = pytest.mark.timeout(300)

Walked = list[tuple[Course, Step]]


@pytest.fixture(scope="module")
def nest() -> Iterator[nursery.Client]:
    client = nursery.Client()
    yield client
    client.close()


@pytest.fixture(scope="module")
def ground() -> Iterator[Path]:
    """Where this worker's machines live."""
    home = MEMORY if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="walk-", dir=home) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def courses(
    tmp_path_factory: pytest.TempPathFactory, nest: nursery.Client
) -> list[tuple[Course, list[Step]]]:
    """Every course with its steps, prepared by the first worker that gets here."""
    return once(
        tmp_path_factory,
        "walk",
        lambda folder: survey(folder, nest),
        list[tuple[Course, list[Step]]],
    )


def survey(folder: Path, nest: nursery.Client) -> list[tuple[Course, list[Step]]]:
    """Run every course once, whole, and list the steps of its walk.

    What a revert's children do is what an update's do: they are walked there.
    """
    found = []
    for number, course in enumerate(walking.prepare(folder, nest)):
        points = walking.points(course, folder / f"whole-{number}", nest)
        found.append((course, walking.steps(points, children=course.name == "update")))
    return found


def walk(
    walked: Walked, ground: Path, nest: nursery.Client, record: Callable[[str, object], None]
) -> None:
    """Take the steps, some at once; every one that goes wrong is told."""

    def fall(number: int) -> str | None:
        course, step = walked[number]
        try:
            walking.walk(course, step, Path(tempfile.mkdtemp(dir=ground), "m"), nest)
        except AssertionError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(AT_ONCE) as machines:
        wrong = [text for text in machines.map(fall, range(len(walked))) if text]
    assert not wrong, f"{len(wrong)} of {len(walked)} falls went wrong:\n\n" + "\n\n".join(wrong)
    for course, step in walked:
        record(TALLY, (course.kind, course.name, str(step.point)))


def share(courses: list[tuple[Course, list[Step]]], kind: str, chunk: int, of: int) -> Walked:
    everything = [
        (course, step) for course, steps in courses if course.kind == kind for step in steps
    ]
    assert len(everything) >= of
    return everything[chunk::of]


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_an_update_survives_sigkill_at_each_durable_step(
    chunk: int,
    courses: list[tuple[Course, list[Step]]],
    ground: Path,
    nest: nursery.Client,
    record_property: Callable[[str, object], None],
) -> None:
    walk(share(courses, "update", chunk, CHUNKS), ground, nest, record_property)


@pytest.mark.parametrize("chunk", range(2))
def test_a_self_update_survives_sigkill_at_each_durable_step(
    chunk: int,
    courses: list[tuple[Course, list[Step]]],
    ground: Path,
    nest: nursery.Client,
    record_property: Callable[[str, object], None],
) -> None:
    walk(share(courses, "self-update", chunk, 2), ground, nest, record_property)


@pytest.mark.parametrize("chunk", range(2))
def test_a_revert_survives_sigkill_at_each_durable_step(
    chunk: int,
    courses: list[tuple[Course, list[Step]]],
    ground: Path,
    nest: nursery.Client,
    record_property: Callable[[str, object], None],
) -> None:
    walk(share(courses, "revert", chunk, 2), ground, nest, record_property)


@pytest.mark.parametrize("chunk", range(4))
def test_a_recovery_survives_sigkill_at_each_durable_step(
    chunk: int,
    courses: list[tuple[Course, list[Step]]],
    ground: Path,
    nest: nursery.Client,
    record_property: Callable[[str, object], None],
) -> None:
    walk(share(courses, "recovery", chunk, 4), ground, nest, record_property)


def test_the_walk_passes_every_kind_of_durable_step(
    courses: list[tuple[Course, list[Step]]],
) -> None:
    passed = {(step.point.process, step.point.step) for _, steps in courses for step in steps}
    for process in ("guardian", "worker", "stager"):
        for point in ("write", "fsync", "rename", "dirsync", "done", "remove"):
            assert (process, point) in passed or (process, point) == ("worker", "remove")
    assert ("guardian", "append") in passed
