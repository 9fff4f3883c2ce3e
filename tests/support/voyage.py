"""An update loop that goes on for ever while the power fails at random instants.

A good release is shipped, then a bad one that is reverted, then a good one, …
Each leg is one boot: the machine recovers, takes orders, and loses its power
after a time drawn by lot, now and then while it still recovers.

What a machine at rest has said, it has to say after every cut that follows.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from agent.ctl import client
from agent.slots import record as records
from agent.slots import seal as seals
from agent.slots.record import BootRecord
from agent.stager import rebuild
from feed import manifest
from tests.support import nursery, walking
from tests.support.crashing import Walk
from tests.support.disks import FORGETFUL, HASTY
from tests.support.powercuts import ENDS_S, Station
from tests.support.vendor import Vendor
from tests.support.walking import KINDS, PATTERN, RESTING, SETTINGS_BEFORE, Machine

STAGES = 8  # beyond the first release; then the next machine begins
RESTS = 0.6  # the share of legs that begin when the machine has recovered
SPAN_S = 1.2  # the longest of them; an update and its end take 0.5 s
RECOVERY_SPAN_S = 0.4  # the longest of the others; a recovery takes 0.2 s
LOOK_S = 0.005


class Stage(msgspec.Struct, frozen=True):
    """A release, what the feed looks like when it is the newest, and how it ends."""

    release: str
    feed: str
    good: bool
    digests: dict[str, str]
    level: int


class Chart(msgspec.Struct, frozen=True):
    """The stages in order, the first one installed in `folder`."""

    stages: list[Stage]
    folder: str
    root: str


class Log(msgspec.Struct):
    """What happened on a voyage: the states in which power was cut, the ends of attempts.

    recovery_s is the longest from a boot to rest.
    """

    cuts: Counter[str] = msgspec.field(default_factory=Counter)
    outcomes: Counter[str] = msgspec.field(default_factory=Counter)
    recovery_s: float = 0.0


def prepare(folder: Path, nest: nursery.Client) -> Chart:
    """A vendor's releases, and a machine that runs the first of them."""
    vendor = Vendor(folder / "vendor")
    root = folder / "root.json"
    root.write_bytes(vendor.root)
    stages = [_ship(vendor, folder, number) for number in range(STAGES + 1)]
    machine = walking.install(folder / "installed", nest, Path(stages[0].feed), root)
    return Chart(stages, str(machine.folder), str(root))


def _ship(vendor: Vendor, folder: Path, number: int) -> Stage:
    good = number % 2 == 0
    release = f"r{_version(number)}" + ("" if good else "-bad")
    vendor.ship(release, _components(folder, release, number), kinds=KINDS)
    feed = shutil.copytree(vendor.feed, folder / "feeds" / release, symlinks=True)
    (path,) = (feed / "targets/releases").glob(f"*.{release}.json")
    shipped = manifest.parse(path.read_bytes(), expected_id=release)
    digests = {item.name: item.digest for item in shipped.components}
    return Stage(release, str(feed), good, digests, level=number)


def _version(number: int) -> str:
    return "171" if number == 0 else str(271 + 2 * number)


def _components(folder: Path, release: str, number: int) -> dict[str, Any]:
    tree = folder / "inputs" / release
    tree.mkdir(parents=True)
    (tree / "scan").write_text(f"#!/bin/sh\necho {release}\n")
    (tree / "tables").write_bytes(PATTERN[: 5000 + 64 * number])
    version = _version(number)
    return {
        "pattern": (version, PATTERN[:9000] + release.encode() * number + PATTERN[9000:]),
        "engine": (f"1.{version}", tree),
        "settings": (version, json.dumps({"level": number}).encode()),
    }


class Voyage:
    """See the module. One station, one machine after another."""

    def __init__(self, chart: Chart, place: Station, lot: random.Random, *, tries: int) -> None:
        self.log = Log()
        self._chart = chart
        self._place = place
        self._lot = lot
        self._tries = tries
        self._embark()

    def _embark(self) -> None:
        """Another machine, at the first stage."""
        self._place.clear()
        self._feed = self._place.folder / "feed"
        self._machine = Machine(
            self._place.folder,
            self._place.nest,
            feed=str(self._feed),
            root=self._chart.root,
            tries=self._tries,
        )
        walking.copy_state(Path(self._chart.folder), self._place.folder)
        self._place.disk.sync()
        self._stage = 0
        self._known: list[dict[str, Any]] = []
        self._held: set[str] = set()
        self._next_stage()
        self._boot()

    def _next_stage(self) -> None:
        self._stage += 1
        fresh = self._place.folder / "feed.new"
        fresh.symlink_to(self._chart.stages[self._stage].feed)
        fresh.rename(self._feed)

    def _boot(self) -> None:
        walk = Walk(folder=str(self._place.folder), promises=True)
        self._booted = time.monotonic()
        self._rested = False
        self._machine.wake(walk, boot=self._place.boot())

    # Sailing.

    def sail(self, cuts: int) -> None:
        """So many legs; at the end the last attempt ends in peace.

        Raises AssertionError: something was lost, stuck or half done.
        """
        try:
            for _ in range(cuts):
                self._leg()
            last = self._stage
            self._machine.expect(
                lambda: self._look() and (self._ended() or self._stage > last), "the stage ends"
            )
        finally:
            self._machine.power_off()

    def _leg(self) -> None:
        span = RECOVERY_SPAN_S
        if self._lot.random() < RESTS:
            span = SPAN_S
            self._machine.expect(self._look, f"at rest {ENDS_S} s after a boot", seconds=ENDS_S)
        until = time.monotonic() + self._lot.random() * span
        while time.monotonic() < until:
            self._look()
            time.sleep(LOOK_S)
        state = self._state(self._machine.status())
        self.log.cuts[state] += 1
        self._place.lose_power(self._machine, self._lot.choice((FORGETFUL, HASTY)))
        self._check_what_was_known()
        if self._stage == STAGES and self._ended():
            self._embark()
        else:
            self._boot()

    def _state(self, status: dict[str, Any]) -> str:
        name: str = status["state"]["name"]
        if status["state"]["reason"] == "guardian_down" or not self._rested:
            return "recovery"
        return "rest" if name in RESTING else name

    def _look(self) -> bool:
        """Whether the machine has come to rest since its boot; at rest it gets its next order."""
        status = self._machine.status()
        if status["state"]["reason"] == "guardian_down" or status["verifying"]:
            return self._rested
        if status["state"]["name"] in RESTING and status["fetcher"]["running"]:
            if not self._rested:
                self._rested = True
                seconds = time.monotonic() - self._booted
                self.log.recovery_s = max(self.log.recovery_s, seconds)
            self._at_rest(status)
        return self._rested

    def _at_rest(self, status: dict[str, Any]) -> None:
        history = self._machine.history()
        if history != self._known or not self._held:
            self._learn(status, history)
        if self._ended() and self._stage < STAGES:
            self._next_stage()
        with contextlib.suppress(client.AskError):  # the same order, again in a moment
            self._machine.update()

    def _ended(self) -> bool:
        wanted = self._chart.stages[self._stage].release
        return any(
            item["release"] == wanted and item["outcome"] != "failed" for item in self._known
        )

    # What holds.

    def _learn(self, status: dict[str, Any], history: list[dict[str, Any]]) -> None:
        """The machine is at rest with something new: hold it against everything else."""
        machine, check = self._machine, self._machine.check
        news = history[len(self._known) :]
        check(history[: len(self._known)] == self._known, f"the history forgot {self._known}")
        self.log.outcomes.update(f"{item['outcome']} ({item['reason']})" for item in news)
        attempts = [item["attempt"] for item in history]
        check(len(attempts) == len(set(attempts)), "an attempt has two lines in the history")
        failed = [item for item in news if item["outcome"] == "failed"]
        check(not failed, f"an attempt failed: {failed}")
        kept = [item["release"] for item in history if item["outcome"] == "committed"]
        check(not [name for name in kept if name.endswith("-bad")], f"kept: {kept}")
        check(status["release"] == kept[-1], f"{status['release']} runs, {kept[-1]} was kept last")
        held = {item["release"] for item in status["quarantine"]}
        guilty = {item["release"] for item in history if item["outcome"] == "reverted"}
        check(held == guilty, f"{held} is in quarantine, reverted was {guilty}")
        found = [*machine.slot_problems(), *self._half_states(kept[-1])]
        check(found == [], str(found))
        self._known, self._held = history, held

    def _half_states(self, release: str) -> Iterator[str]:
        """What the disk holds that isn't `release`, whole, and nothing else."""
        machine, layout = self._machine, self._machine.layout
        stage = next(item for item in self._chart.stages if item.release == release)
        seal, _ = seals.read(layout.current.resolve())
        for item in seal.components:
            content = rebuild._content_digest(item, layout.current.resolve() / item.name)
            if not content == item.digest == stage.digests[item.name]:
                yield f"{item.name} isn't what is signed"
        record = records.load(layout.boot_record)
        plain = BootRecord(active=record.active, slots=record.slots, boot_id=record.boot_id)
        if record != plain:
            yield f"the boot record isn't at rest: {record}"
        if layout.trial_notes.exists():
            yield "trial.json is left over"
        settings = machine.target.read_bytes()
        if settings != SETTINGS_BEFORE.replace(b"level = 2", b"level = %d" % stage.level):
            yield f"the settings aren't those of {release}: {settings!r}"

    def _check_what_was_known(self) -> None:
        """Right after a cut, before anybody mends anything."""
        check = self._machine.check
        history = self._machine.history()
        check(history[: len(self._known)] == self._known, f"the history forgot {self._known}")
        kept = self._machine.layout.quarantine
        told = json.loads(kept.read_bytes()) if kept.exists() else []
        check(self._held <= {item["release"] for item in told}, f"{self._held} isn't held any more")
