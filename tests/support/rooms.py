"""A guardian's rooms around fakes, on a folder, with a clock that the test moves.

rooms = Rooms(tmp_path)
rooms.install("a", "r171", {"virus-pattern": "171"})
rooms.fetcher.orders, rooms.stager.jobs    # what was asked of them
rooms.stager.finish(result)
"""

from __future__ import annotations

import hashlib
from collections import deque
from pathlib import Path
from typing import Any, cast

from agent import config
from agent.channel import Begin, HandedOver, Job, Order, Result
from agent.guardian.attempt import Attempts
from agent.guardian.health import Prober
from agent.guardian.history import Outcome
from agent.guardian.ledger import Ledger
from agent.guardian.programs import OWN, Program
from agent.guardian.staging import Done
from agent.guardian.trial import Trial
from agent.layout import Layout
from agent.loop import Loop
from agent.slots import seal as seals
from agent.slots.record import BootRecord, SlotContent, SlotName
from feed.manifest import Activation, Component, Form, HealthPolicy, Kind
from tests.support.turns import until

DEFAULTS = """
state_dir = "state"
fetcher_user = ""
host_id = "test-host"
sources = [{ url = "http://localhost:1/" }]
[health]
warmup_s = 0
window_s = 1
baseline_s = 0
"""


class FakeFetcher:
    """Takes orders and does nothing."""

    pid = 1
    next_check = None
    program = OWN

    def __init__(self) -> None:
        self.orders: list[Order] = []

    def order(self, order: Order) -> bool:
        self.orders.append(order)
        return True

    def use(self, program: Program) -> bool:
        self.program = program
        return False


class FakeStager:
    """Keeps jobs until the test says what became of the first."""

    def __init__(self) -> None:
        self.jobs: deque[tuple[Job, Done]] = deque()

    @property
    def busy(self) -> bool:
        return bool(self.jobs)

    def run(self, job: Job, done: Done) -> None:
        self.jobs.append((job, done))

    def finish(self, result: Result | None) -> None:
        _, done = self.jobs.popleft()
        done(result)


class Rooms:
    """See the module."""

    def __init__(self, folder: Path, extra: str = "", *, probation_s: float = 60) -> None:
        settings = config.anchored(
            config.parse(
                (f"{DEFAULTS}probation_s = {probation_s}\n{extra}").encode(), where="test"
            ),
            folder,
        )
        self.layout = Layout(folder / "state", folder / "run", folder / "root.json")
        self.loop = Loop()
        self.ledger = Ledger(settings, self.layout, self.loop)
        self.ledger.prepare()
        self.fetcher, self.stager = FakeFetcher(), FakeStager()
        self.outcomes: list[Outcome] = []
        self.prober = Prober(settings.watch)
        self.trial = Trial(
            self.ledger, self.prober, on_end=self.outcomes.append, ask_source=lambda: None
        )
        self.attempts = Attempts(
            self.ledger, cast("Any", self.fetcher), cast("Any", self.stager), self.trial
        )

    def install(self, slot: SlotName, release: str, versions: dict[str, str]) -> SlotContent:
        """Seal `release` in `slot` and let the record know it; the first one is active."""
        held = build(self.layout.slot(slot), release, versions)
        record = self.ledger.record
        slots: dict[SlotName, SlotContent] = {**record.slots, slot: held}
        self.ledger.commit(BootRecord(active=record.active or slot, slots=slots))
        return held

    def begun(self) -> Begin:
        """A check that has been ordered."""
        assert self.attempts.begin("test", download=True)
        order = self.fetcher.orders[-1]
        assert isinstance(order, Begin)
        return order

    def until_ended(self) -> None:
        """Let the loop turn until an attempt has ended."""
        until(self.loop, lambda: self.outcomes)

    def turns(self, count: int = 20) -> None:
        """Let the loop serve what is due."""
        for _ in range(count):
            self.loop.turn(0.01)


def handed_over(attempt: str, **given: Any) -> HandedOver:
    """What a fetcher says at the end."""
    values = {"source": "s", "release": "r173", "digest": "d" * 64, "decision": "offered"}
    return HandedOver(attempt=attempt, wire_bytes=1, full_bytes=1, **{**values, **given})


def build(
    slot: Path, release: str, versions: dict[str, str], activation: Activation | None = None
) -> SlotContent:
    """A sealed slot whose components hold their versions; the one called `settings` is some."""
    components = []
    for name, version in versions.items():
        (slot / name).mkdir(parents=True)
        path = slot / name / f"{name}.dat"
        path.write_bytes(version.encode())
        path.chmod(0o444)
        component = Component(
            name=name,
            kind=Kind.SETTINGS if name == "settings" else Kind.PATTERN,
            version=version,
            form=Form.FILE,
            filename=path.name,
            length=len(version),
            digest=hashlib.sha256(version.encode()).hexdigest(),
        )
        components.append(component)
    seal = seals.Seal(
        schema=seals.SCHEMA,
        release=release,
        components=tuple(components),
        activation=activation or Activation(),
        health=HealthPolicy(),
        files=seals.scan(slot),
    )
    return seals.write(slot, seal)
