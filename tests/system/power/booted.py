"""A booted Debian whose plug is pulled, and the moments at which it is.

Its root is one file system, so the package, the journal and the boot are cut
with the agent's state. What it has said before a cut, it has to say after it.
"""

from __future__ import annotations

import itertools
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from agent.layout import Layout
from agent.slots import record as records
from agent.slots import seal as seals
from agent.slots.record import BootRecord
from tests.support import agentprogram, disks, rootfs
from tests.support.disks import FORGETFUL, HASTY, Disk
from tests.support.guest import Guest
from tests.support.vendor import Vendor
from tests.system.systemd.machine import RESTING, Machine, on_trial

LOOK_S = 0.005
MOMENT_S = 90.0


class Moment(NamedTuple):
    """When the plug is pulled in the attempt at a release, and how that ends in spite of it.

    The power stays up to lingers_s after `reached`. again: a second cut, while it boots.
    """

    during: str
    reached: Callable[[Machine, str], Any]
    outcome: str
    reason: str | None = None
    word: str = "good"
    tries: int = 1
    lingers_s: float = 0.0
    again: bool = False
    program: str | None = None


def is_staged(machine: Machine, release: str) -> bool:
    status = machine.guest.status()
    return bool(status["state"]["name"] == "staging" and machine.guest.processes("agent.stager"))


def has_flipped(machine: Machine, release: str) -> bool:
    return on_trial(machine.guest.status()) == release


def was_healthy(machine: Machine, release: str) -> bool:
    status = machine.guest.status()
    return on_trial(status) == release and status["trial"]["healthy_s"] > 0


def is_reverting(machine: Machine, release: str) -> bool:
    return bool(machine.guest.status()["state"]["name"] == "reverting")


def has_ended(machine: Machine, release: str) -> bool:
    return any(item["release"] == release for item in machine.guest.history())


USED_UP = "reverted", "tries_used_up"
MOMENTS = (
    Moment("staging", is_staged, "committed", lingers_s=0.1),
    Moment("flip", has_flipped, *USED_UP, lingers_s=0.3),
    Moment("last try", was_healthy, *USED_UP, lingers_s=1.0),
    Moment("boot after it", was_healthy, *USED_UP, again=True),
    Moment("trial", was_healthy, "committed", tries=4, lingers_s=1.0),
    Moment("revert", is_reverting, "reverted", "cpu_pinned", word="burn", tries=4, lingers_s=0.1),
    Moment("commit", has_ended, "committed"),
    Moment("self-update", was_healthy, "committed", tries=4, lingers_s=0.5, program="0.2.0"),
)


class Booted:
    """The machine on its disk; one moment after another."""

    def __init__(self, machine: Machine, disk: Disk, lot: random.Random) -> None:
        self.machine = machine
        self.guest = machine.guest
        self._disk = disk
        self._lot = lot
        self._names = itertools.count()

    def _unused_name(self) -> str:
        """Of a file that never was: one that is written anew is flushed when it is closed."""
        return f"unflushed-{next(self._names)}"

    def go_through(self, moment: Moment, programs: Path) -> list[str]:
        """Cut the power at the moment and see that nothing is lost; the state at each cut."""
        while not (caught := self._caught(moment, programs)):
            pass  # it was over between two looks: once more
        release, before, known = caught
        time.sleep(self._lot.random() * moment.lingers_s)  # not for luck: it is the lot
        known += self.guest.history()[len(known) :]
        self._lose_power(known)
        cut = [moment.during]
        if moment.again:
            self.guest.boot(wait=False)
            time.sleep(self._lot.random())
            self._lose_power(known)
            cut.append("boot")
        self.guest.boot()
        self._go_on(release)
        self._check(moment, release, before=before, known=known)
        return cut

    def _caught(
        self, moment: Moment, programs: Path
    ) -> tuple[str, str, list[dict[str, Any]]] | None:
        """A new release that is right there, the one before it, and the history until then.

        None: its attempt has ended, and nobody saw it come by.
        """
        release = self._ship(moment, programs)
        before = self.guest.status()["release"]
        known = self.guest.history()
        self.machine.update()
        seen: list[bool] = []

        def is_settled() -> bool:
            is_over = has_ended(self.machine, release)
            seen[:] = [bool(moment.reached(self.machine, release))]
            return seen[0] or is_over

        what = f"{moment.during} of {release}"
        self.guest.wait_until(is_settled, what, seconds=MOMENT_S, every_s=LOOK_S)
        return (release, before, known) if seen[0] else None

    def _ship(self, moment: Moment, programs: Path) -> str:
        others: dict[str, Any] = {}
        if moment.program:
            tree = agentprogram.copy(programs / moment.during, version=moment.program)
            others[agentprogram.COMPONENT.replace("-", "_")] = moment.program, tree
        probation_s = 600 if moment.word == "burn" else 2
        health = {"tries": moment.tries, "probation_s": probation_s}
        return self.machine.ship(moment.word, health=health, **others)

    def _lose_power(self, known: list[dict[str, Any]]) -> None:
        """The plug is pulled; before anybody mends anything, what is on the disk is judged."""
        unflushed = self._disk.point / "var/tmp" / self._unused_name()
        unflushed.write_bytes(b"lost")
        disks.cut(self._disk.point, self._lot.choice((FORGETFUL, HASTY)))
        self.guest.cut()
        self._disk.replug()
        assert not unflushed.exists() or unflushed.read_bytes() == b"", "that was no power cut"
        layout = Layout(self._disk.point / "var/lib/holdfast", Path("/nowhere"), Path("/nowhere"))
        slot = layout.current.resolve()
        broken = seals.verify(slot, seals.read(slot)[0])
        assert not broken, f"what the engines read isn't whole: {broken}"
        assert records.load(layout.boot_record).content is not None
        lines = layout.history.read_text() if layout.history.exists() else ""
        for item in known:
            assert item["attempt"] in lines, f"the history forgot {item}"

    def _go_on(self, release: str) -> None:
        """Nobody does more than ask for an update that hasn't come to a trial."""
        status = self.guest.wait_for(
            lambda seen: seen["state"]["reason"] != "guardian_down" and seen["fetcher"]["pid"]
        )
        if not has_ended(self.machine, release) and on_trial(status) is None:
            self.machine.update()
        self.machine.wait_for_end(release)
        self.guest.wait_for(
            lambda seen: (
                seen["trial"] is None
                and seen["state"]["name"] in RESTING
                and not seen["verifying"]
                and (seen.get("fetcher") or {}).get("pid")
            )
        )

    def _check(
        self, moment: Moment, release: str, *, before: str, known: list[dict[str, Any]]
    ) -> None:
        guest, history = self.guest, self.guest.history()
        assert history[: len(known)] == known
        assert len({item["attempt"] for item in history}) == len(history)
        ends = [item for item in history if item["release"] == release]
        (end,) = (item for item in ends if item["outcome"] != "failed")
        assert end["outcome"] == moment.outcome, end
        assert moment.reason in {None, end["reason"]}, end
        status = guest.status()
        kept = [item["release"] for item in history if item["outcome"] == "committed"]
        assert status["release"] == kept[-1] == (release if release in kept else before)
        guilty = {item["release"] for item in history if item["outcome"] == "reverted"}
        assert {item["release"] for item in status["quarantine"]} == guilty
        record = records.load(guest.layout.boot_record)
        assert record == BootRecord(
            active=record.active, slots=record.slots, boot_id=record.boot_id
        ), "the boot record isn't at rest"
        assert self.machine.engine_log()[-1].endswith(f" good {kept[-1]}")
        if moment.program:
            assert status["fetcher"]["version"] == moment.program
        said = guest.run("agentctl", "status", ok=False)
        assert said.returncode == 0, said.stdout
        assert kept[-1] in said.stdout
        guest.run("agentctl", "verify")
        guard = guest.unit("holdfast-bootguard.service")
        assert guard["Result"] == "success", guest.journal("holdfast-bootguard.service")


@contextmanager
def booted(kind: str, package: Path, vendor: Vendor, lot: random.Random) -> Iterator[Booted]:
    """The package installed in a Debian on a file system of `kind`; nothing is left of it."""
    base = rootfs.base()
    place = Path(tempfile.mkdtemp(prefix="holdfast-booted-", dir=disks.MEMORY))
    try:
        with Disk(kind, place, place / "root", size=disks.SYSTEM_BYTES) as disk:
            subprocess.run(["cp", "-a", f"{base}/.", disk.point], check=True)
            disk.point.chmod(0o755)
            guest = Guest(disk.point, feed=vendor.feed)
            try:
                guest.boot()
                machine = Machine(guest, vendor, package)
                machine.set_up()
                machine.make_ready()
                disk.sync()
                yield Booted(machine, disk, lot)
            finally:
                guest.close()
    finally:
        shutil.rmtree(place)
