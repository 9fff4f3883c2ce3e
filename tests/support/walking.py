"""Walk the fault points of an update, a revert and a recovery.

A Course is prepared once and copied for every Step: the steps are all points
that a whole run passes, each with the ways in which the machine can fall there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

import agent
from agent.ctl import client
from agent.slots import record as records
from agent.slots import seal as seals
from agent.slots.record import BootRecord, Phase
from tests.support import crashing, nursery
from tests.support.badcalls import Illness
from tests.support.crashing import Point, Walk
from tests.support.endpoint import Endpoint, lines_of
from tests.support.vendor import Vendor

PATTERN = bytes(range(256)) * 80
SETTINGS_BEFORE = b"# the engine's own\nlevel = 2\nheuristics=on\n"
SETTINGS_EDITED = b"# by hand\r\nlevel=9\nheuristics=on \n\n\tlast line without its end"
SETTINGS_AFTER = b'{"level": 5, "heuristics": null, "cloud": true}'
RESTING = {"idle", "committed", "reverted", "failed"}
KINDS = {"engine": "engine", "settings": "settings", "agent-program": "program"}

ALONE = ("self",)
TOGETHER = ("guardian", "self")
ORPHANED = ("guardian",)
ORPHANED_EVERY = 6  # all children that are left behind end the same way

_EXTRA = """
[program]
component = "agent-program"
[[settings]]
component = "settings"
file = "state/etc/engine.conf"
[[activation]]
name = "reload"
command = ["/bin/sh", "-c", 'case "$HOLDFAST_RELEASE" in r175|*-bad) exit 1; esac']
"""
_HEALTH = {"warmup_s": 0.0, "window_s": 0.2, "probation_s": 0.2, "baseline_s": 0.0}


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """How a course ends: the release that runs, the attempt's line in the history.

    outcome None: the attempt was forgotten with the boot record.
    """

    release: str
    outcome: str | None
    reason: str | None = None


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """A prepared machine in `folder`, what `feed` offers it, and how it ends.

    kind is update, self-update, revert or recovery. order: an update is asked for after
    the start. settings: what the settings' target holds at the end.
    """

    name: str
    kind: str
    folder: str
    feed: str
    root: str
    order: bool
    expected: Expected
    settings: str


class Step(msgspec.Struct, frozen=True):
    """One point, and who falls there."""

    point: Point
    victims: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.point} kills {' and '.join(self.victims)}"


class Machine(Endpoint):
    """An endpoint whose processes come from a nursery."""

    def __init__(
        self, folder: Path, nest: nursery.Client, *, feed: str, root: str, tries: int = 4
    ) -> None:
        url = Path(feed).as_uri()
        super().__init__(
            folder,
            url=url,
            root=Path(root).read_bytes(),
            extra=_EXTRA,
            health=_HEALTH | {"tries": tries},
            at_start=False,
        )
        self._nest = nest
        self.guardian = 0

    @property
    def target(self) -> Path:
        """The file that settings go to, on the same disk as everything that has to last."""
        return self.folder / "state" / "etc" / "engine.conf"

    def wake(
        self, walk: Walk | None = None, *, boot: str = "", illness: Illness | None = None
    ) -> None:
        """Start the guardian; `boot` tells this boot of the machine from others."""
        (self.folder / "processes").write_bytes(b"")
        order = nursery.Order(
            config=str(self.config),
            log=str(self.log),
            environment={"PATH": os.defpath},
            walk=walk or Walk(folder=str(self.folder)),
            boot=boot,
            illness=illness,
        )
        self.guardian = self._nest.start(order)

    def release_recorded(self) -> bool:
        """Whether the boot record names an active slot, as it does after a first commit."""
        record = records.load(self.layout.boot_record)
        return record.active is not None and record.phase is Phase.COMMITTED

    def up(self) -> bool:
        return self.status()["state"]["reason"] != "guardian_down"

    def fired(self) -> bool:
        return (self.folder / "fired").exists()

    def settled(self) -> bool:
        """Whether nothing is in progress and nothing is due."""
        status = self.status()
        return status["state"]["name"] in RESTING and not status["verifying"]

    def update(self) -> None:
        """Ask for an update, as agentctl does, once there is a fetcher."""
        client.ask(self.layout.control_socket, {"do": "update"})

    def down(self, *, within_s: float = 60.0) -> list[str]:
        """Wait until every process of the machine has gone; the names of those that stay."""
        left: list[str] = []

        def has_ended() -> bool:
            left[:] = self._left()
            return not left

        crashing.wait_until(has_ended, seconds=within_s)
        return left

    def _left(self) -> list[str]:
        """What runs; a child that has just been forked is known by the lock it inherited."""
        found = list(crashing.alive(self.folder).values())
        return found or ([] if crashing.is_free(self.layout.lock) else ["a new child"])

    def power_off(self) -> None:
        """SIGKILL whatever is left."""
        if (self.folder / "processes").exists():
            for pid in crashing.alive(self.folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.down()

    def stop_in_order(self) -> None:
        """SIGTERM; the guardian ends with 0 and leaves nobody behind."""
        os.kill(self.guardian, signal.SIGTERM)
        left = self.down()
        self.check(not left, f"{left} outlived an orderly stop")
        exits = (self.folder / "exits").read_text()
        self.check(f"{self.guardian} 0\n" in exits, f"agentd's exit: {exits}")

    def expect(self, reached: Any, what: str, *, seconds: float = 20.0) -> None:
        """Wait for something that must come."""
        self.check(crashing.wait_until(reached, seconds=seconds), f"never: {what}")

    def check(self, fact: bool, otherwise: str) -> None:
        """AssertionError with the machine's state and log."""
        if not fact:
            boot = self.layout.boot_record
            raise AssertionError(
                f"{otherwise}\nstatus: {json.dumps(self.status())[:1500]}\n"
                f"record: {boot.read_text() if boot.exists() else None}\n"
                f"history: {self.history()}\nlog:\n{self.log.read_text()[-5000:]}"
            )


# Preparing.


def prepare(folder: Path, nest: nursery.Client) -> list[Course]:
    """The courses, each with a machine at its beginning.

    One more here is walked with SIGKILL and with power cuts, at each of its steps.
    """
    vendor = Vendor(folder / "vendor")
    root = folder / "root.json"
    root.write_bytes(vendor.root)
    feeds = {}
    for release, changed in (("r171", 0), ("r173", 1), ("r175", 2), ("r177", 1)):
        vendor.ship(release, _components(folder, release, changed), kinds=KINDS)
        feeds[release] = shutil.copytree(vendor.feed, folder / "feeds" / release, symlinks=True)
    installed = install(folder / "installed", nest, feeds["r171"], root)
    updating = Course(
        name="update",
        kind="update",
        folder=str(installed.folder),
        feed=str(feeds["r173"]),
        root=str(root),
        order=True,
        expected=Expected(release="r173", outcome="committed"),
        settings=installed.target.read_bytes().decode(),
    )
    renewing = msgspec.structs.replace(
        updating,
        name="self-update",
        kind="self-update",
        feed=str(feeds["r177"]),
        expected=Expected(release="r177", outcome="committed"),
    )
    edited = copy(updating, folder / "edited", nest)
    edited.target.write_bytes(SETTINGS_EDITED)
    reverting = msgspec.structs.replace(
        updating,
        name="revert",
        kind="revert",
        folder=str(edited.folder),
        settings=SETTINGS_EDITED.decode(),
        feed=str(feeds["r175"]),
        expected=Expected(release="r171", outcome="reverted", reason="activation_failed"),
    )
    installing = msgspec.structs.replace(
        updating,
        name="install",
        folder=str(_fresh(folder / "fresh", nest, feeds["r171"], root).folder),
        feed=str(feeds["r171"]),
        expected=Expected(release="r171", outcome="committed"),
    )
    recoveries = _recoveries(folder, nest, updating, reverting)
    return [installing, updating, renewing, reverting, *recoveries]


def _components(folder: Path, release: str, changed: int) -> dict[str, Any]:
    tree = folder / "inputs" / release
    (tree / "lib").mkdir(parents=True)
    (tree / "scan").write_text(f"#!/bin/sh\necho {release}\n")
    (tree / "scan").chmod(0o755)
    (tree / "lib" / "tables").write_bytes(PATTERN[: 100 + changed])
    number = release[1:]
    edited = release == "r175"
    brought = {"agent-program": ("0.2.0", _program(folder))} if release == "r177" else {}
    return brought | {
        "pattern": (number, PATTERN[:9000] + release.encode() * changed + PATTERN[9000:]),
        "engine": (f"1.{number}", tree),
        "settings": ("2" if edited else "1", SETTINGS_AFTER if edited else b'{"level": 3}'),
    }


def _program(folder: Path) -> Path:
    """An agent program; a nursery runs its own code in its place."""
    tree = folder / "inputs" / "program"
    (tree / "agent").mkdir(parents=True)
    shutil.copy(Path(agent.__file__).with_name("program.json"), tree / "agent")
    return tree


def _fresh(folder: Path, nest: nursery.Client, feed: Path, root: Path) -> Machine:
    """A machine with an engine and without an agent's state."""
    machine = Machine(folder, nest, feed=str(feed), root=str(root))
    machine.target.parent.mkdir(parents=True)
    machine.target.write_bytes(SETTINGS_BEFORE)
    return machine


def install(folder: Path, nest: nursery.Client, feed: Path, root: Path) -> Machine:
    """A machine that runs r171, the first release of `feed`."""
    machine = _fresh(folder, nest, feed, root)
    machine.wake()
    try:
        order(machine)
        machine.expect(lambda: machine.status()["release"] == "r171", "r171 is installed")
        machine.expect(machine.settled, "r171 is committed")
        machine.stop_in_order()
    finally:
        machine.power_off()
    return machine


def _recoveries(
    folder: Path, nest: nursery.Client, updating: Course, reverting: Course
) -> Iterator[Course]:
    """Machines that fell in a trial, a revert, a commit; one without a readable record."""
    link = "state/current"
    trial = _fallen(folder, nest, updating, "trial", Point("guardian", "done", link, 1))
    yield trial
    failing = _fallen(folder, nest, reverting, "bad trial", Point("guardian", "done", link, 1))
    yield failing
    yield _fallen(folder, nest, reverting, "reverting", Point("guardian", "rename", link, 2))
    history = Point("guardian", "append", "state/history.jsonl", 1)
    yield _fallen(folder, nest, updating, "keeping", history)
    yield _reverted_at_boot(folder, nest, failing)
    torn = copy(trial, folder / "torn", nest)
    torn.layout.boot_record.write_bytes(b'{"checksum":"')
    yield msgspec.structs.replace(
        trial,
        name="torn record",
        folder=str(torn.folder),
        expected=Expected(release="r171", outcome="reverted", reason="record_lost"),
    )


def _fallen(folder: Path, nest: nursery.Client, course: Course, name: str, point: Point) -> Course:
    machine = copy(course, folder / name.replace(" ", "-"), nest)
    fall(machine, course, Step(point, ALONE))
    (machine.folder / "fired").unlink()
    return msgspec.structs.replace(
        course, name=name, kind="recovery", folder=str(machine.folder), order=False
    )


def _reverted_at_boot(folder: Path, nest: nursery.Client, trial: Course) -> Course:
    """The machine was power-cycled during its trial, and no try is left."""
    machine = copy(trial, folder / "no-try", nest)
    path = machine.layout.boot_record
    record = records.load(path)
    records.store(path, msgspec.structs.replace(record, tries_left=0, boot_id="the boot before"))
    expected = Expected(release="r171", outcome="reverted", reason="tries_used_up")
    return msgspec.structs.replace(
        trial, name="no try left", folder=str(machine.folder), expected=expected
    )


def copy(course: Course, folder: Path, nest: nursery.Client) -> Machine:
    """The course's machine once more, in a folder of its own."""
    copy_state(Path(course.folder), folder)
    return Machine(folder, nest, feed=course.feed, root=course.root)


def copy_state(source: Path, folder: Path) -> None:
    """What is on the disk of the machine in `source`, for one in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source / "state", folder / "state", symlinks=True, dirs_exist_ok=True)
    undo = folder / "state/settings-undo.json"
    if undo.exists():  # it names the settings' file by its whole path
        undo.write_text(undo.read_text().replace(f"{source}/", f"{folder}/"))


# Walking.


def points(course: Course, folder: Path, nest: nursery.Client, *, boot: str = "") -> list[Point]:
    """What a whole run of the course passes, in order."""
    machine = copy(course, folder, nest)
    machine.wake(Walk(folder=str(folder), record=True), boot=boot)
    try:
        if course.order:
            order(machine)
        _wait_for_end(machine, course)
        verify(machine, course)
        machine.stop_in_order()
    finally:
        machine.power_off()
    return crashing.recorded(folder)


def walk(course: Course, step: Step, folder: Path, nest: nursery.Client) -> None:
    """Fall at one point, get up, and be as if nothing had happened.

    Raises AssertionError: something is lost, stuck or left over.
    """
    machine = copy(course, folder, nest)
    try:
        fall(machine, course, step)
        if "guardian" in step.victims or step.point.process == "guardian":
            machine.wake()
        go_on(machine, course)
    except AssertionError as error:
        raise AssertionError(f"{course.name}: {step}: {error}") from error
    finally:
        machine.power_off()
        shutil.rmtree(folder)


def go_on(machine: Machine, course: Course, *, excused: str = "\0") -> None:
    """See a machine that has got up to the course's end, and stop it.

    What it went back from for a reason that says `excused` doesn't count.
    """
    machine.expect(lambda: machine.up() and machine.settled(), "at rest after the fall")
    if machine.status()["release"] is not None:  # else its first one isn't there yet
        machine.check(machine.slot_problems() == [], str(machine.slot_problems()))
    if machine.status()["release"] != course.expected.release or not _ended(
        machine, course, excused
    ):
        order(machine)
    _wait_for_end(machine, course, excused)
    verify(machine, course, excused)
    machine.stop_in_order()


def fall(machine: Machine, course: Course, step: Step) -> None:
    """Run the course up to the step's point; what lies there is whole."""
    machine.wake(Walk(folder=str(machine.folder), point=step.point, victims=step.victims))
    if course.order:
        order(machine, or_fired=True)
    machine.expect(machine.fired, f"the point {step.point} is passed")
    if step.victims == ALONE and step.point.process != "guardian":
        machine.expect(machine.settled, "the attempt ends, failed or with another child")
        name = machine.status()["state"]["name"]
        machine.check(name in {"failed", "committed"}, f"a child's death left the state {name}")
    else:
        left = machine.down()
        machine.check(not left, f"{left} outlived the guardian")
    found = problems_of_current(machine)
    machine.check(found == [], f"what the engines read isn't whole: {found}")


def problems_of_current(machine: Machine) -> list[str]:
    """What is wrong with the release that engines see through the link, if there is one."""
    if not os.path.lexists(machine.layout.current):
        installed = machine.layout.boot_record.exists() and machine.release_recorded()
        return ["there is no link to it"] if installed else []
    slot = machine.layout.current.resolve()
    return [f"{item.path} {item.problem}" for item in seals.verify(slot, seals.read(slot)[0])]


def order(machine: Machine, *, or_fired: bool = False) -> None:
    """Ask for an update as soon as the machine takes the order, unless it falls before."""

    def ready() -> bool:
        try:
            machine.update()
        except client.AskError:
            return False
        return True

    machine.expect(
        lambda: (or_fired and machine.fired()) or (machine.up() and machine.settled() and ready()),
        "an order is taken",
    )


def _ended(machine: Machine, course: Course, excused: str) -> bool:
    wanted = course.expected.outcome
    news = _news(machine, course, excused)
    return wanted is None or any(item["outcome"] == wanted for item in news)


def _news(machine: Machine, course: Course, excused: str) -> list[dict[str, Any]]:
    """The history since the course began, without what failed before a flip."""
    past = {item["attempt"] for item in _history_of(Path(course.folder))}
    return [
        item
        for item in machine.history()
        if item["attempt"] not in past
        and item["outcome"] != "failed"
        and excused not in item["sentence"]
    ]


def _history_of(folder: Path) -> list[dict[str, Any]]:
    return lines_of(folder / "state/history.jsonl")


def _wait_for_end(machine: Machine, course: Course, excused: str = "\0") -> None:
    machine.expect(
        lambda: (
            machine.settled()
            and machine.status()["release"] == course.expected.release
            and _ended(machine, course, excused)
        ),
        f"the end on {course.expected.release}, {course.expected.outcome}",
    )


def verify(machine: Machine, course: Course, excused: str = "\0") -> None:
    """Everything that must hold once a course has ended."""
    check, expected = machine.check, course.expected
    check(machine.slot_problems() == [], str(machine.slot_problems()))
    record = records.load(machine.layout.boot_record)
    plain = BootRecord(active=record.active, slots=record.slots, boot_id=record.boot_id)
    check(record == plain, "the boot record isn't at rest")
    _verify_books(machine, course, excused)
    before = course.settings.encode()
    check(machine.target.read_bytes() == before, "the settings aren't what they were")
    check(not machine.layout.trial_notes.exists(), "trial.json is left over")
    check(_undo_is_of(machine, record), "settings-undo.json is left over")
    left = [
        str(path.relative_to(machine.folder))
        for path in machine.folder.rglob("*")
        if path.name.startswith(".tmp-") or path.parent == machine.layout.incoming
    ]
    check(not left, f"left over: {left}")
    check(not machine.layout.staging.exists(), "staging is left over")
    check(machine.status()["release"] == expected.release, "another release runs")


def _undo_is_of(machine: Machine, record: BootRecord) -> bool:
    """Previous settings are kept for the way back from what runs, for nothing else."""
    undo = machine.layout.settings_undo
    if not undo.exists():
        return True
    owner = json.loads(undo.read_text()).get("owner")
    return record.content is not None and owner == record.content.seal


def _verify_books(machine: Machine, course: Course, excused: str) -> None:
    check, expected = machine.check, course.expected
    attempts = [item["attempt"] for item in machine.history()]
    check(len(attempts) == len(set(attempts)), "an attempt has two lines in the history")
    news = [(item["outcome"], item["reason"]) for item in _news(machine, course, excused)]
    if expected.outcome is None:
        check(news == [], f"the history tells of {news}")
    else:
        check([outcome for outcome, _ in news] == [expected.outcome], f"the history: {news}")
        check(expected.reason in {None, news[0][1]}, f"the reason is {news[0][1]}")
    held = [item["release"] for item in machine.status()["quarantine"]]
    guilty = expected.outcome == "reverted" and expected.reason != "record_lost"
    check(held == (["r175"] if guilty else []), f"quarantined: {held}")


def steps(found: list[Point], *, children: bool) -> list[Step]:
    """Every way to fall: a child alone, with its guardian; now and then left behind by it."""
    made = []
    for number, point in enumerate(found):
        if point.process == "guardian":
            made.append(Step(point, ALONE))
        elif children:
            made += [Step(point, ALONE), Step(point, TOGETHER)]
            made += [Step(point, ORPHANED)] * (number % ORPHANED_EVERY == 0)
    return made
