"""Power cuts: a machine's state folder on a disk of its own, cut, mounted, started again.

A Station is the place of one machine. It is used for one cut after another.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support import crashing, disks, nursery, promises, walking
from tests.support.crashing import Walk
from tests.support.disks import Disk
from tests.support.walking import TOGETHER, Course, Machine, Step

ENDS_S = 20.0
"""Within which a machine is at rest after its boot."""


class Station:
    """A folder in memory; below it `state` is a disk of its own."""

    def __init__(self, folder: Path, disk: Disk, nest: nursery.Client) -> None:
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
def station(kind: str, nest: nursery.Client) -> Iterator[Station]:
    """A station with a disk of that kind; nothing of it is left afterwards."""
    place = Path(tempfile.mkdtemp(prefix="holdfast-power-", dir=disks.MEMORY))
    try:
        with Disk(kind, place, place / "machine" / "state") as disk:
            yield Station(place / "machine", disk, nest)
    finally:
        shutil.rmtree(place)


def walk(course: Course, step: Step, how: int, place: Station) -> None:
    """Cut the power at one point of the course; the machine goes on as if it hadn't been.

    Raises AssertionError: something is lost, stuck or left over.
    """
    machine = place.machine(course)
    try:
        point = Walk(
            folder=str(place.folder),
            point=step.point,
            victims=TOGETHER,
            cut=how,
            promises=True,
        )
        machine.wake(point, boot=place.boot())
        if course.order:
            walking.order(machine)
        machine.expect(machine.fired, f"the point {step.point} is passed")
        place.lose_power(machine, None)
        machine.wake(boot=place.boot())
        walking.go_on(machine, course)
    except AssertionError as error:
        text = f"{course.name}, {place.disk.kind}, cut {how}: {step.point}: {error}"
        raise AssertionError(text) from error
    finally:
        machine.power_off()
