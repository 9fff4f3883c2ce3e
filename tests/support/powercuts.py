"""Power cuts: a machine's state folder on a disk of its own, cut, mounted, started again.

A Station is the place of one machine. It is used for one cut after another.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from tests.support import crashing, disks, nursery, promises, walking
from tests.support.crashing import Walk
from tests.support.disks import Disk
from tests.support.walking import TOGETHER, Course, Machine, Step

SEED = int(os.environ.get("POWER_SEED", "1"))  # draws the cuts
ENDS_S = 20.0  # within which a machine is at rest after its boot

# Properties of a test: a Tally of each cut, {how an attempt ended: times}, the longest
# recovery in seconds, (cuts, seconds) of machines without and with a system of their own.
TALLY = "power cut"
ENDS = "power cut: attempts"
RECOVERY = "power cut: recovery"
TIMES = "power cut: seconds"
BOOTED_TIMES = "power cut: seconds of a booted system"


class Cut(msgspec.Struct, frozen=True):
    """Where and how power is cut: see tests.support.disks."""

    course: Course
    step: Step
    disk: str
    how: int


class Tally(msgspec.Struct, frozen=True, array_like=True):
    """One cut: the file system, the kind of attempt or its state, the point if there was one.

    booted: the whole system went down, not the agent's processes alone.
    """

    disk: str
    during: str
    point: str | None
    booted: bool = False


class Station:
    """A folder in memory; below it `state` is a disk of its own."""

    def __init__(self, folder: Path, disk: Disk, nest: nursery.Client | None) -> None:
        self.folder = folder
        self.disk = disk
        self.nest = nest
        self.boots = 0

    def boot(self) -> str:
        """The next boot's id."""
        self.boots += 1
        return f"boot-{self.boots}"

    def machine(self, course: Course) -> Machine:
        """The course's machine, on an empty disk."""
        self.clear()
        assert self.nest is not None
        machine = walking.copy(course, self.folder, self.nest)
        self.disk.sync()
        return machine

    def clear(self) -> None:
        """As if nothing had ever been here; also where a test left a disk without power."""
        self.disk.replug()
        for path in self.folder.iterdir():
            if path == self.disk.point:
                self.disk.wipe()
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def lose_power(self, machine: Machine, how: int | None) -> None:
        """Everything stops, and the disk is as the machine finds it at its next boot.

        how is None when the disk has been cut already.
        """
        if how is not None:
            promises.power_fails(self.folder)
            disks.cut(self.disk.point, how)
        for pid in crashing.alive(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        crashing.wait_until(lambda: not crashing.alive(self.folder), seconds=10, interval_s=0.002)
        self.disk.replug()
        broken = promises.broken(self.folder)
        machine.check(not broken, f"the disk kept no promise: {broken}")
        found = walking.problems_of_current(machine)
        machine.check(found == [], f"what the engines read isn't whole: {found}")


@contextlib.contextmanager
def station(kind: str, nest: nursery.Client | None) -> Iterator[Station]:
    """A station with a disk of that kind; nothing of it is left afterwards."""
    place = Path(tempfile.mkdtemp(prefix="holdfast-power-", dir=disks.MEMORY))
    try:
        with Disk(kind, place, place / "machine" / "state") as disk:
            yield Station(place / "machine", disk, nest)
    finally:
        shutil.rmtree(place)


def walk(cut: Cut, place: Station) -> None:
    """Cut the power at one point of a course; the machine goes on as if it hadn't been.

    Raises AssertionError: something is lost, stuck or left over.
    """
    course, point = cut.course, cut.step.point
    machine = place.machine(course)
    try:
        armed = Walk(
            folder=str(place.folder), point=point, victims=TOGETHER, cut=cut.how, promises=True
        )
        machine.wake(armed, boot=place.boot())
        if course.order:
            walking.order(machine, or_fired=True)
        machine.expect(machine.fired, f"the point {point} is passed")
        place.lose_power(machine, None)
        machine.wake(boot=place.boot())
        walking.go_on(machine, course)
    except AssertionError as error:
        raise AssertionError(
            f"{course.name}, {cut.disk}, cut {cut.how}: {point}: {error}"
        ) from error
    finally:
        machine.power_off()


def summary(properties: Iterable[tuple[str, Any]], *, failed: int, seed: str) -> list[str]:
    """What was cut, for the end of a run; empty when nothing was."""
    found = [*properties]
    cuts = [msgspec.convert(value, Tally) for name, value in found if name == TALLY]
    if not cuts:
        return []
    each = _each(value for name, value in found if name == TIMES)
    ends: Counter[str] = Counter()
    for name, value in found:
        if name == ENDS:
            ends.update(value)
    recovery = max((value for name, value in found if name == RECOVERY), default=0.0)
    walked = Counter(cut.during for cut in cuts if cut.point)
    loose = Counter(cut.during for cut in cuts if not cut.point and not cut.booted)
    booted = Counter(cut.during for cut in cuts if cut.booted)
    boot = _each(value for name, value in found if name == BOOTED_TIMES)
    points = len({cut.point for cut in cuts if cut.point})
    end = "zero half states" if not failed else f"{failed} tests of it failed"
    disks_cut = _counts(Counter(cut.disk for cut in cuts))
    return [
        f"power cuts: {len(cuts)} ({disks_cut}), {each:.2f} s each, seed {seed}; {end}",
        f"  before {points} durable steps ({_counts(walked)}), at random ({_counts(loose)})",
        f"  of a whole Debian that boots again ({_counts(booted)}), {boot:.1f} s each",
        f"  ends of the loop's attempts: {_counts(ends)}; longest recovery {recovery:.1f} s",
    ]


def _each(times: Iterable[tuple[int, float]]) -> float:
    """The mean of (cuts, seconds)."""
    known = [*times]
    return sum(seconds for _, seconds in known) / max(sum(count for count, _ in known), 1)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.most_common()) or "none"
