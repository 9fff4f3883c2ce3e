"""A machine that fetches and stages in the test's own process, without a guardian."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

from agent import config, layout
from agent.channel import (
    Begin,
    HandedOver,
    Host,
    Installed,
    SlotReport,
    Staged,
    StageJob,
    Verified,
    VerifyJob,
)
from agent.config import Config
from agent.fetcher import cycle
from agent.slots import record as records
from agent.slots import seal as seals
from agent.slots.record import BootRecord, SlotName
from agent.stager import main as stager

BASE = random.Random(171).randbytes(100_000)
PATTERN = "virus-pattern"


def edition(number: int) -> bytes:
    return BASE[:5000] + f"edition {number}".encode() * 5 + BASE[5000:]


class Machine:
    """Fetches and stages in this process; `said` is what the fetcher told on the way."""

    def __init__(self, folder: Path, *urls: str, root: bytes, extra: str = "") -> None:
        folder.mkdir(parents=True)
        self.config = folder / "config.toml"
        sources = ", ".join(f'{{ url = "{url}", proxy = "" }}' for url in urls)
        self.config.write_text(
            f'state_dir = "state"\nsources = [{sources}]\nhost_id = "h"\n'
            f"[download]\nattempts = 1\nroom_reserve_bytes = 0\nconnect_timeout_s = 1\n{extra}"
        )
        (folder / "root.json").write_bytes(root)
        self.settings: Config = config.load(self.config)
        self.places = layout.resolve(self.settings, self.config)
        for path in (
            self.places.slots,
            self.places.incoming,
            self.places.cache,
            self.places.fetcher_trust,
            self.places.stager_trust,
        ):
            path.mkdir(parents=True)
        self.record = BootRecord()
        self.attempt = 0
        self.said: list[Any] = []

    @property
    def spare(self) -> SlotName:
        return self.record.spare

    @property
    def slot(self) -> Path:
        """The active slot."""
        assert self.record.active is not None
        return self.places.slot(self.record.active)

    def host(self) -> Host:
        installed: dict[str, Installed] = {}
        if self.record.active:
            seal, _ = seals.read(self.slot)
            installed = {
                item.name: Installed(version=item.version, digest=item.digest, length=item.length)
                for item in seal.components
            }
        return Host(
            host_id="h",
            region="global",
            platform=sys.platform,
            agent_version="0.1.0",
            active_release=self.record.content.release if self.record.content else None,
            installed=installed,
            quarantine=(),
        )

    def order(self, **changes: Any) -> Begin:
        self.attempt += 1
        usual = {"attempt": str(self.attempt), "trigger": "t", "download": True}
        return Begin(**{**usual, "host": self.host(), **changes})

    def fetch(self, **changes: Any) -> Any:
        return cycle.check(self.order(**changes), self.settings, self.places)

    def stage(self, *, reuse: bool = False) -> Any:
        job = StageJob(
            attempt=str(self.attempt),
            host=self.host(),
            active=self.record.active,
            slot=self.spare,
            reuse=reuse,
        )
        return stager.serve(job, self.places)

    def flip(self, staged: Staged) -> None:
        slot = self.spare
        slots = {**self.record.slots, slot: staged.content}
        self.record = BootRecord(active=slot, slots=slots)
        records.store(self.places.boot_record, self.record)
        self.places.current.unlink(missing_ok=True)
        self.places.current.symlink_to(self.places.slot(slot))

    def install(self) -> HandedOver:
        """Fetch, stage and switch to what is offered."""
        word = self.fetch()
        assert isinstance(word, HandedOver), word
        staged = self.stage()
        assert isinstance(staged, Staged), staged
        assert self.problems(self.spare) == []
        self.flip(staged)
        return word

    def problems(self, slot: SlotName) -> list[str]:
        seal, _ = seals.read(self.places.slot(slot))
        return [
            f"{item.path} {item.problem}" for item in seals.verify(self.places.slot(slot), seal)
        ]

    def inspect(self) -> dict[str, SlotReport]:
        slots = {name: held.seal for name, held in self.record.slots.items()}
        found = stager.serve(VerifyJob(slots=slots), self.places)
        assert isinstance(found, Verified)
        return {item.slot: item for item in found.reports}


def content(machine: Machine, name: str = PATTERN) -> bytes:
    return (machine.slot / name / f"{name}.dat").read_bytes()
