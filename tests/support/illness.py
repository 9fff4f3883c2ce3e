"""Fail each call of an update and of a revert, and see the machine through it."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from tests.support import badcalls, crashing, nursery, walking
from tests.support.badcalls import Illness
from tests.support.crashing import Point
from tests.support.walking import Course, Machine

TALLY = "bad call"  # the property that tells of one illness: the course, its kind, the end
REFUSED_S = 0.7  # for which a disk that refuses everything is watched


def calls(course: Course, folder: Path, nest: nursery.Client) -> list[Point]:
    """What a whole run of the course asks of its disk, in order."""
    machine = walking.copy(course, folder, nest)
    machine.wake(illness=Illness())
    try:
        _begin(machine)
        walking.go_on(machine, course)
    finally:
        machine.power_off()
    lines = (folder / badcalls.CALLS).read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Point) for line in lines]


def _begin(machine: Machine) -> None:
    machine.expect(lambda: machine.up() and machine.settled(), "at rest after the start")
    (machine.folder / badcalls.ARMED).touch()
    walking.order(machine)


def suffer(course: Course, illness: Illness, folder: Path, nest: nursery.Client) -> str:
    """One illness of the disk: what runs stays whole, and says so; the next attempt works.

    Returns how the attempt that met it ended. Raises AssertionError.
    """
    machine = walking.copy(course, folder, nest)
    try:
        machine.wake(illness=illness)
        _begin(machine)
        end = _meet(machine, course, illness)
        (folder / badcalls.ILL).unlink(missing_ok=True)
        if machine.up() and illness.call and illness.call.step in badcalls.CLEANING:
            machine.stop_in_order()  # what couldn't be deleted goes at the next start
        if not machine.up():
            machine.wake()  # as a service manager does
        walking.go_on(machine, course, excused=illness.said)
    except AssertionError as error:
        raise AssertionError(f"{course.name}: {illness}: {error}") from error
    finally:
        machine.power_off()
        shutil.rmtree(folder)
    return end


def _meet(machine: Machine, course: Course, illness: Illness) -> str:
    machine.expect((machine.folder / badcalls.FIRED).exists, "the call is refused")
    seconds = REFUSED_S if illness.lasting else 20.0
    rested = crashing.wait_until(
        lambda: not machine.up() or (machine.settled() and _has_ended(machine)), seconds=seconds
    )
    found = walking.problems_of_current(machine)
    machine.check(found == [], f"what the engines read isn't whole: {found}")
    if not machine.up():
        end = "the guardian ended"
    elif not rested:
        machine.check(illness.lasting, "the attempt doesn't end")
        end = "ended when the disk was well"
    else:
        end = machine.status()["state"]["name"]
    if end != course.expected.outcome:
        _check_told(machine, illness)
    return end


def _has_ended(machine: Machine) -> bool:
    """Whether the order has been taken and nothing is left of it."""
    return machine.status()["state"]["reason"] != "started"


def _check_told(machine: Machine, illness: Illness) -> None:
    """The error is named where administrators look, with the file that it is about."""
    log = machine.log.read_text()
    machine.check(illness.said in log, f"{illness.said!r} isn't in the log")
    with contextlib.suppress(OSError):
        error = machine.status()["check"]["last_error"]
        machine.check(
            error is None or illness.said in error["sentence"] or error["code"] == "stager_died",
            f"agentctl says {error}",
        )


def summary(properties: Iterable[tuple[str, Any]], *, failed: int, seed: str) -> str | None:
    """One line on what was refused; None when nothing was."""
    found = [value for name, value in properties if name == TALLY]
    if not found:
        return None
    courses = Counter(f"of {course}: {end}" for course, _, end in found)
    errors = Counter(error for _, error, _ in found)
    ends = "; ".join(f"{count} {name}" for name, count in sorted(courses.items()))
    kinds = ", ".join(f"{count} {name}" for name, count in errors.items())
    end = "nothing suffered" if not failed else f"{failed} tests of it failed"
    return f"bad disk calls: {len(found)} ({kinds}), seed {seed}; {ends}; {end}"
