"""From a feed to a sealed slot, in one process: keep, rebuild, chain, full, tree; and mending."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import random
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import channel, config, layout, worker
from agent.channel import (
    Begin,
    Checked,
    CycleFailed,
    HandedOver,
    Host,
    Installed,
    NeedsFull,
    Progress,
    Reach,
    Reached,
    SlotReport,
    Staged,
    StageJob,
    StageRefused,
    Verified,
    VerifyJob,
)
from agent.config import Config
from agent.fetcher import cycle, handover
from agent.slots import record as records
from agent.slots import seal as seals
from agent.slots.record import BootRecord, SlotName
from agent.stager import clone, rebuild
from agent.stager import main as stager
from feed import durable
from feed.rollout import Decision, QuarantinedSet
from tests.support.vendor import Vendor

BASE = random.Random(171).randbytes(100_000)
PATTERN = "virus-pattern"
SAY = cycle.say


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


@pytest.fixture(scope="module")
def first_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vendor's folder after its first release, to be copied: making keys takes a while."""
    folder = tmp_path_factory.mktemp("vendors") / "vendor"
    Vendor(folder).ship("r1", {PATTERN: ("1", edition(1))})
    return folder


@pytest.fixture
def vendor(tmp_path: Path, first_release: Path) -> Vendor:
    shutil.copytree(first_release, tmp_path / "vendor", symlinks=True)
    return Vendor(tmp_path / "vendor")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    words: list[Any] = []
    monkeypatch.setattr(cycle, "say", words.append)
    return words


@pytest.fixture
def machine(tmp_path: Path, vendor: Vendor, said: list[Any]) -> Iterator[Machine]:
    umask = os.umask(0o077)  # a hardened machine: slots are readable all the same
    made = Machine(tmp_path / "machine", vendor.url, root=vendor.root)
    made.said = said
    yield made
    os.umask(umask)


def content(machine: Machine, name: str = PATTERN) -> bytes:
    return (machine.slot / name / f"{name}.dat").read_bytes()


def test_a_first_install_comes_whole_and_is_sealed_read_only(machine: Machine) -> None:
    word = machine.install()
    assert (word.release, word.decision) == ("r1", Decision.OFFERED)
    assert content(machine) == edition(1)
    for path in machine.slot.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o755 if path.is_dir() else 0o444), path
    assert stat.S_IMODE(machine.slot.stat().st_mode) == 0o755
    assert not machine.places.staging.exists()
    assert isinstance(machine.said[0], Progress)


def test_everything_in_a_slot_is_flushed_before_its_seal(machine: Machine) -> None:
    steps: list[tuple[str, str]] = []
    durable.set_fault_hook(lambda point, where: steps.append((point, where)))
    try:
        machine.install()
    finally:
        durable.set_fault_hook(None)
    sealed = steps.index(("rename", str(machine.slot / seals.SEAL_NAME)))
    before = steps[:sealed]
    assert ("fsync", str(machine.slot / PATTERN / f"{PATTERN}.dat")) in before
    assert ("dirsync", str(machine.slot / PATTERN)) in before
    assert ("dirsync", str(machine.slot)) in before


def test_nothing_is_flushed_but_what_outlives_the_attempt(machine: Machine, vendor: Vendor) -> None:
    """What is handed over is read at once, and forgotten after a power cut."""
    machine.install()
    vendor.ship("r2", {PATTERN: ("2", edition(2))})
    flushed: list[Path] = []
    durable.set_fault_hook(
        lambda point, where: flushed.append(Path(where)) if "sync" in point else None
    )
    try:
        for full_only in ((), (PATTERN,)):
            assert isinstance(machine.fetch(full_only=full_only), HandedOver)
        fetched = flushed.copy()
        staged = machine.stage()
    finally:
        durable.set_fault_hook(None)
    assert {path if path.is_dir() else path.parent for path in fetched} == {
        machine.places.fetcher_trust
    }
    assert isinstance(staged, Staged)
    written = machine.places.slot(machine.spare) / PATTERN / f"{PATTERN}.dat"
    assert flushed.count(written) == 1


def test_what_the_disk_doesnt_give_back_as_it_was_signed_isnt_sealed(
    machine: Machine, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.install()
    vendor.ship("r2", {PATTERN: ("2", edition(2))})
    machine.fetch()
    written = machine.places.slot(machine.spare) / PATTERN / f"{PATTERN}.dat"
    flush = durable.sync_tree

    def flush_and_rot(root: Path) -> None:
        flush(root)
        written.chmod(0o644)
        written.write_bytes(edition(2)[:-1] + b"?")

    monkeypatch.setattr(durable, "sync_tree", flush_and_rot)
    found = machine.stage()
    assert isinstance(found, StageRefused)
    assert "isn't the signed content" in found.sentence
    assert not (written.parent.parent / seals.SEAL_NAME).exists()


def test_a_base_that_cant_be_read_is_asked_for_in_full(
    machine: Machine, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.install()
    vendor.ship("r2", {PATTERN: ("2", edition(2))})
    machine.fetch()
    base = machine.slot / PATTERN / f"{PATTERN}.dat"

    class Rotten(io.FileIO):
        def readinto(self, _buffer: Any, /) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(base))

        def readall(self) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(base))

    monkeypatch.setattr(rebuild.io, "FileIO", Rotten)
    found = machine.stage()
    assert isinstance(found, NeedsFull)
    assert found.components == (PATTERN,)
    monkeypatch.undo()
    assert base.read_bytes() == edition(1)


def test_the_next_release_comes_as_an_incremental(machine: Machine, vendor: Vendor) -> None:
    machine.install()
    vendor.ship("r2", {PATTERN: ("2", edition(2))})
    word = machine.install()
    assert word.wire_bytes < word.full_bytes / 20
    assert content(machine) == edition(2)
    handed = json.loads((machine.places.incoming / "2" / "handover.json").read_bytes())
    assert handed["roads"] == {PATTERN: ["1", "2"]}


def test_releases_that_were_missed_come_as_one_increment_or_a_chain(
    machine: Machine, vendor: Vendor
) -> None:
    machine.install()
    for number in (2, 3, 4):
        vendor.ship(f"r{number}", {PATTERN: (str(number), edition(number))})
    for old, new in (("1", "4"), ("1", "3")):  # only steps of one or two releases are left
        folder = vendor.feed / "targets" / "components" / PATTERN / new
        for path in folder.glob(f"*.from-{old}.delta"):
            path.unlink()
    word = machine.install()
    assert word.release == "r4"
    assert content(machine) == edition(4)


def test_a_chain_is_rebuilt_step_by_step(machine: Machine, vendor: Vendor) -> None:
    """The stager follows a chain that the fetcher took, whatever shorter road there was."""
    machine.install()
    for number in (2, 3):
        vendor.ship(f"r{number}", {PATTERN: (str(number), edition(number))})
    assert isinstance(machine.fetch(), HandedOver)
    folder = machine.places.incoming / "2"
    targets = vendor.feed / "targets" / "components" / PATTERN
    for old, new in (("1", "2"), ("2", "3")):
        (source,) = (targets / new).glob(f"*.from-{old}.delta")
        place = folder / "targets" / "components" / PATTERN / new / f"from-{old}.delta"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(source.read_bytes())
    (folder / "handover.json").write_text(json.dumps({"roads": {PATTERN: ["1", "2", "3"]}}))
    staged = machine.stage()
    assert isinstance(staged, Staged)
    machine.flip(staged)
    assert content(machine) == edition(3)


@pytest.mark.parametrize(
    "roads",
    [{}, {PATTERN: []}, {PATTERN: ["2"]}, {PATTERN: ["0", "2"]}, {PATTERN: ["2", "1"]}, "rubbish"],
)
def test_without_a_usable_road_the_full_is_asked_for(
    machine: Machine, vendor: Vendor, roads: Any
) -> None:
    machine.install()
    vendor.ship("r2", {PATTERN: ("2", edition(2))})
    machine.fetch()
    hint = machine.places.incoming / "2" / "handover.json"
    hint.write_text(json.dumps({"roads": roads}))
    found = machine.stage()
    assert isinstance(found, NeedsFull)
    assert found.components == (PATTERN,)
    assert machine.problems("a" if machine.spare == "b" else "b") == []
    assert not (machine.places.slot(machine.spare) / seals.SEAL_NAME).exists()


def test_an_altered_base_asks_for_the_full_which_then_is_built(
    machine: Machine, vendor: Vendor
) -> None:
    machine.install()
    vendor.ship("r2", {PATTERN: ("2", edition(2))})
    file = machine.slot / PATTERN / f"{PATTERN}.dat"
    file.chmod(0o644)
    file.write_bytes(b"altered")
    machine.fetch()
    found = machine.stage()
    assert isinstance(found, NeedsFull)
    assert "don't lead to the signed content" in found.sentence
    word = machine.fetch(full_only=found.components)
    assert isinstance(word, HandedOver)
    staged = machine.stage()
    assert isinstance(staged, Staged)
    machine.flip(staged)
    assert content(machine) == edition(2)


@pytest.mark.parametrize("damage", ["missing", "two files", "a link"])
def test_a_base_that_isnt_one_file_asks_for_the_full(
    machine: Machine, vendor: Vendor, damage: str
) -> None:
    machine.install()
    vendor.ship("r2", {PATTERN: ("2", edition(2))})
    machine.fetch()
    folder = machine.slot / PATTERN
    file = folder / f"{PATTERN}.dat"
    if damage == "two files":
        (folder / "more").touch()
    else:
        file.unlink()
    if damage == "a link":
        file.symlink_to("/etc/passwd")
    assert isinstance(machine.stage(), NeedsFull)


def test_what_hasnt_changed_is_kept_whatever_its_file_is_called_now(
    machine: Machine, vendor: Vendor
) -> None:
    other = {"engine-config": ("7", b"kept as it is")}
    vendor.ship("r2", {PATTERN: ("2", edition(2)), **other})
    machine.install()
    vendor.release(
        "r3",
        {PATTERN: ("3", edition(3)), **other},
        filenames={"engine-config": "renamed.dat"},
    )
    vendor.publish("r3")
    vendor.offer("r3")
    machine.fetch()
    staged = machine.stage()
    assert isinstance(staged, Staged)
    assert set(staged.changed) == {PATTERN}
    machine.flip(staged)
    (kept,) = (machine.slot / "engine-config").iterdir()
    assert (kept.name, kept.read_bytes()) == ("renamed.dat", b"kept as it is")


def test_a_renamed_file_is_rebuilt_from_the_old_name(machine: Machine, vendor: Vendor) -> None:
    machine.install()
    vendor.release("r2", {PATTERN: ("2", edition(2))}, filenames={PATTERN: "renamed.dat"})
    vendor.publish("r2")
    vendor.offer("r2")
    word = machine.install()
    assert word.wire_bytes < word.full_bytes / 20
    assert (machine.slot / PATTERN / "renamed.dat").read_bytes() == edition(2)


def test_a_tree_keeps_its_programs_links_and_folders(
    machine: Machine, vendor: Vendor, tmp_path: Path
) -> None:
    tree = tmp_path / "engine"
    (tree / "lib").mkdir(parents=True)
    (tree / "run").write_bytes(b"#!/bin/sh\n")
    (tree / "run").chmod(0o755)
    (tree / "lib" / "core.so").write_bytes(BASE)
    (tree / "lib64").symlink_to("lib")
    vendor.ship("r2", {"engine": ("1.0", tree)}, kinds={"engine": "engine"})
    machine.install()
    built = machine.slot / "engine"
    assert stat.S_IMODE((built / "run").stat().st_mode) == 0o555
    assert stat.S_IMODE((built / "lib" / "core.so").stat().st_mode) == 0o444
    assert str((built / "lib64").readlink()) == "lib"
    (tree / "lib" / "core.so").write_bytes(BASE + b"more")
    vendor.ship("r3", {"engine": ("1.1", tree)}, kinds={"engine": "engine"})
    word = machine.install()
    assert word.wire_bytes < word.full_bytes / 10
    assert (machine.slot / "engine" / "lib" / "core.so").read_bytes() == BASE + b"more"


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A program's folder with everything that one may hold."""
    folder = tmp_path / "engine"
    (folder / "lib").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "run").write_bytes(b"#!/bin/sh\n")
    (folder / "run").chmod(0o755)
    for number in range(4):
        (folder / "lib" / f"part{number}").write_bytes(BASE[number * 20_000 :][:20_000])
    (folder / "lib64").symlink_to("lib")
    return folder


def ship_engine(vendor: Vendor, release: str, version: str, engine: Path, pattern: int) -> None:
    vendor.ship(
        release,
        {PATTERN: (str(pattern), edition(pattern)), "engine": (version, engine)},
        kinds={"engine": "engine"},
    )


def test_a_kept_folder_is_a_copy_that_outlives_damage_to_the_original(
    machine: Machine, vendor: Vendor, engine: Path
) -> None:
    ship_engine(vendor, "r2", "1.0", engine, 2)
    machine.install()
    old = machine.slot / "engine"
    ship_engine(vendor, "r3", "1.0", engine, 3)
    machine.install()
    kept = machine.slot / "engine"
    assert kept != old
    assert (kept / "empty").is_dir()
    assert stat.S_IMODE((kept / "run").stat().st_mode) == 0o555
    assert str((kept / "lib64").readlink()) == "lib"
    with (old / "lib" / "part0").open("r+b") as file:  # as root: the seal doesn't stop anybody
        file.truncate(7)
    assert (kept / "lib" / "part0").read_bytes() == BASE[:20_000]
    assert (kept / "lib" / "part0").stat().st_nlink == 1


def flipped(path: Path) -> None:
    path.chmod(0o644)
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": lambda folder: flipped(folder / "lib" / "part1"),
    "a missing file": lambda folder: (folder / "lib" / "part1").unlink(),
    "a missing empty folder": lambda folder: (folder / "empty").rmdir(),
    "a stray file": lambda folder: (folder / "lib" / "stray").touch(),
    "a fifo": lambda folder: os.mkfifo(folder / "lib" / "fifo"),
    "a program that isn't one any more": lambda folder: (folder / "run").chmod(0o444),
    "a file where a link was": lambda folder: (
        (folder / "lib64").unlink(),
        (folder / "lib64").write_bytes(b"lib"),
    ),
    "a link where a file was": lambda folder: (
        (folder / "lib" / "part1").unlink(),
        (folder / "lib" / "part1").symlink_to("part0"),
    ),
    "a terabyte": lambda folder: os.truncate(folder / "lib" / "part1", 1 << 40),
    "nothing left": shutil.rmtree,
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_kept_folder_that_was_damaged_is_asked_for_in_full(
    machine: Machine, vendor: Vendor, engine: Path, what: str
) -> None:
    ship_engine(vendor, "r2", "1.0", engine, 2)
    machine.install()
    ship_engine(vendor, "r3", "1.0", engine, 3)
    DAMAGE[what](machine.slot / "engine")
    machine.fetch()
    found = machine.stage()
    assert isinstance(found, NeedsFull)
    assert found.components == ("engine",)
    assert isinstance(machine.fetch(full_only=found.components), HandedOver)
    staged = machine.stage()
    assert isinstance(staged, Staged)
    machine.flip(staged)
    assert (machine.slot / "engine" / "lib" / "part1").read_bytes() == BASE[20_000:40_000]


@pytest.mark.parametrize("what", ["a flipped bit", "a fifo", "a missing empty folder"])
def test_a_changed_folder_whose_base_was_damaged_is_asked_for_in_full(
    machine: Machine, vendor: Vendor, engine: Path, what: str
) -> None:
    ship_engine(vendor, "r2", "1.0", engine, 2)
    machine.install()
    (engine / "lib" / "part0").write_bytes(BASE[:20_000] + b"more")
    ship_engine(vendor, "r3", "1.1", engine, 2)
    DAMAGE[what](machine.slot / "engine")
    machine.fetch()
    found = machine.stage()
    assert isinstance(found, NeedsFull)
    assert found.components == ("engine",)


def test_a_changed_folder_shares_what_was_only_moved_with_the_active_slot(
    machine: Machine, vendor: Vendor, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that clones."""
    cloned: set[int] = set()

    def ioctl(new: int, _request: int, old: int) -> int:
        os.pwrite(new, os.pread(old, 1 << 20, 0), 0)
        cloned.add(os.fstat(new).st_ino)
        return 0

    ship_engine(vendor, "r2", "1.0", engine, 2)
    machine.install()
    (engine / "lib").rename(engine / "parts")
    (engine / "lib64").unlink()
    (engine / "lib64").symlink_to("parts")
    (engine / "parts" / "part0").rename(engine / "empty" / "moved")
    (engine / "parts" / "part1").write_bytes(BASE[20_000:40_000] + b"more")
    ship_engine(vendor, "r3", "1.1", engine, 2)
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    word = machine.install()
    assert word.wire_bytes < word.full_bytes / 10
    moved = machine.slot / "engine" / "empty" / "moved"
    assert moved.read_bytes() == BASE[:20_000]
    assert stat.S_IMODE(moved.stat().st_mode) == 0o444
    shared = {
        path.name
        for path in (machine.slot / "engine").rglob("*")
        if path.stat().st_ino in cloned and path.is_file()
    }
    assert shared == {"moved", "part2", "part3"}
    assert not (machine.slot / "engine" / "lib").exists()


def test_a_disk_that_fills_up_over_a_copy_isnt_asked_to_hold_the_full(
    machine: Machine, vendor: Vendor, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ship_engine(vendor, "r2", "1.0", engine, 2)
    machine.install()
    ship_engine(vendor, "r3", "1.0", engine, 3)
    machine.fetch()

    def full(*_given: object, **_named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "staging")

    monkeypatch.setattr(clone, "copy_tree", full)
    result = machine.stage()
    assert isinstance(result, StageRefused)
    assert result.code == "disk_full"


def test_a_release_that_the_spare_slot_holds_isnt_fetched_again(
    machine: Machine, vendor: Vendor
) -> None:
    machine.install()
    vendor.ship("r2", {PATTERN: ("2", edition(2))})
    machine.install()
    vendor.withdraw(to="r1")
    seal, _ = seals.read(machine.places.slot(machine.spare))
    word = machine.fetch(spare=seal.contents)
    assert isinstance(word, HandedOver)
    assert (word.decision, word.wire_bytes) == (Decision.RETURN, 0)
    staged = machine.stage(reuse=True)
    assert isinstance(staged, Staged)
    assert staged.reused
    file = machine.places.slot(machine.spare) / PATTERN / f"{PATTERN}.dat"
    file.chmod(0o644)
    file.write_bytes(b"altered")
    refused = machine.stage(reuse=True)
    assert isinstance(refused, StageRefused)
    assert refused.code == "spare_slot_unusable"


def test_a_look_fetches_nothing_but_says_what_an_update_would(
    machine: Machine, vendor: Vendor
) -> None:
    machine.install()
    vendor.ship("r2", {PATTERN: ("2", edition(2))})
    word = machine.fetch(download=False)
    assert isinstance(word, Checked)
    assert (word.decision, word.release) == (Decision.OFFERED, "r2")
    assert 0 < word.fetch_bytes < word.full_bytes
    assert word.requests
    assert not (machine.places.incoming / "2").exists()


def test_a_handover_says_what_was_to_be_fetched_and_how_often_was_asked(
    machine: Machine, vendor: Vendor
) -> None:
    machine.install()
    vendor.ship("r2", {PATTERN: ("2", edition(2))})
    look = machine.fetch(download=False)
    word = machine.fetch()
    assert isinstance(word, HandedOver)
    assert 0 < word.fetch_bytes == look.fetch_bytes < word.full_bytes
    assert word.requests


def test_a_current_machine_is_told_so(machine: Machine) -> None:
    machine.install()
    word = machine.fetch()
    assert isinstance(word, Checked)
    assert word.decision == Decision.CURRENT


def test_the_next_source_answers_for_one_that_doesnt(
    tmp_path: Path, vendor: Vendor, said: list[Any]
) -> None:
    machine = Machine(
        tmp_path / "machine", (tmp_path / "nowhere").as_uri(), vendor.url, root=vendor.root
    )
    word = machine.fetch()
    assert isinstance(word, HandedOver)
    assert word.source == vendor.url


def test_all_sources_failing_is_reported_with_how_many_were_tried(
    tmp_path: Path, vendor: Vendor
) -> None:
    nowhere = [(tmp_path / name).as_uri() for name in ("x", "y")]
    machine = Machine(tmp_path / "machine", *nowhere, root=vendor.root)
    word = machine.fetch()
    assert isinstance(word, CycleFailed)
    assert word.sentence.endswith("(2 sources tried)")


def test_a_source_that_isnt_trusted_is_told_of_before_one_that_is_down(
    tmp_path: Path, vendor: Vendor
) -> None:
    stranger = Vendor(tmp_path / "stranger")
    stranger.ship("r9", {PATTERN: ("9", b"evil")})
    machine = Machine(
        tmp_path / "machine", (tmp_path / "x").as_uri(), stranger.url, root=vendor.root
    )
    word = machine.fetch()
    assert isinstance(word, CycleFailed)
    assert (word.code, word.source) == ("trust_refused", stranger.url)


def test_a_disk_without_room_starts_nothing_and_asks_no_other_source(
    tmp_path: Path, vendor: Vendor
) -> None:
    huge = f"room_reserve_bytes = {1 << 60}"
    machine = Machine(tmp_path / "machine", vendor.url, vendor.url, root=vendor.root)
    text = machine.config.read_text().replace("room_reserve_bytes = 0", huge)
    machine.config.write_text(text)
    machine.settings = config.load(machine.config)
    word = machine.fetch()
    assert isinstance(word, CycleFailed)
    assert word.code == "disk_full"
    assert "sources tried" not in word.sentence


def test_the_sources_can_be_asked_whether_they_answer(tmp_path: Path, machine: Machine) -> None:
    assert cycle.reach(machine.settings, machine.places) == Reached(
        ok=True, detail=machine.settings.sources[0].url
    )
    gone = Machine(tmp_path / "gone", (tmp_path / "x").as_uri(), root=b"{}")
    assert not cycle.reach(gone.settings, gone.places).ok


def test_a_slow_line_is_never_silent_for_long(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guardian takes three minutes of silence for a hang, however slow the line."""
    moments = iter(range(0, 100_000, 10))
    monkeypatch.setattr(handover.time, "monotonic", lambda: float(next(moments)))
    machine.fetch()
    words = [word for word in machine.said if isinstance(word, Progress)]
    assert len(words) > 1  # far less than 256 KiB came


def test_few_small_files_are_kept(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "SMALL_KEPT", 1)
    small = machine.places.cache / "small"
    small.mkdir()
    for number in range(5):
        (small / f"old{number}").touch()
    machine.install()
    assert len(list(small.iterdir())) <= 3


# The processes' own main functions, with real lines in and out.


class _Pipe(io.TextIOWrapper):
    """Standard input or output whose bytes a test gives or reads."""

    def __init__(self, data: bytes = b"") -> None:
        self.bytes = io.BytesIO(data)
        super().__init__(self.bytes)


def serve(monkeypatch: pytest.MonkeyPatch, program: Any, machine: Machine, message: Any) -> bytes:
    out = _Pipe()
    monkeypatch.setattr(sys, "stdin", _Pipe(channel.encode(message)))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(worker.host, "end_with_parent", lambda _parent: True)
    monkeypatch.setattr(worker.host, "drop_network", lambda: True)
    monkeypatch.setattr(worker.log, "configure", lambda *_args, **_kwargs: None)
    monkeypatch.setattr(cycle, "say", SAY)
    assert program.main(["--config", str(machine.config)]) == 0
    return out.bytes.getvalue()


def test_the_worker_and_the_stager_answer_one_line_each(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = serve(monkeypatch, cycle, machine, Reach())
    assert channel.decode(line, channel.Word).ok
    order = machine.order()
    with monkeypatch.context() as patched:
        line = serve(patched, cycle, machine, order)
    job = StageJob(attempt="1", host=machine.host(), active=None, slot="a", reuse=False)
    with monkeypatch.context() as patched:
        line = serve(patched, stager, machine, job)
    assert isinstance(channel.decode(line, channel.Result), Staged)


def test_the_stager_decides_for_itself_whether_the_release_is_offered(machine: Machine) -> None:
    word = machine.fetch()
    staged = machine.stage()
    assert isinstance(staged, Staged)
    held = QuarantinedSet(changed=staged.changed, release=word.release, until=4e9)
    job = StageJob(
        attempt="1",
        host=msgspec.structs.replace(machine.host(), quarantine=(held,)),
        active=None,
        slot="a",
        reuse=False,
    )
    result = stager.serve(job, machine.places)
    assert isinstance(result, StageRefused)
    assert result.code == Decision.QUARANTINED


@pytest.mark.parametrize(("number", "code"), [(28, "disk_full"), (5, "io_error")])
def test_a_disk_that_fails_seals_nothing(machine: Machine, number: int, code: str) -> None:
    machine.fetch()

    def fail(point: str, where: str) -> None:
        if point == "fsync" and where.endswith(".dat"):
            raise OSError(number, os.strerror(number), where)

    durable.set_fault_hook(fail)
    try:
        result = machine.stage()
    finally:
        durable.set_fault_hook(None)
    assert isinstance(result, StageRefused)
    assert result.code == code
    assert "the active slot is untouched" in result.sentence
    assert not (machine.places.slot("a") / seals.SEAL_NAME).exists()


# Wiping and mending.


def test_a_wiped_slot_loses_its_seal_first(machine: Machine) -> None:
    machine.install()
    slot = machine.slot
    (slot / "unreadable" / "deep").mkdir(parents=True)
    (slot / "unreadable").chmod(0o000)
    gone: list[str] = []

    def hook(point: str, where: str) -> None:
        if point == "dirsync" and where == str(slot):
            gone.append("seal")
            assert (slot / PATTERN / f"{PATTERN}.dat").exists()
            assert not (slot / seals.SEAL_NAME).exists()

    durable.set_fault_hook(hook)
    try:
        rebuild.wipe(slot)
    finally:
        durable.set_fault_hook(None)
    assert gone == ["seal"]
    assert not slot.exists()
    rebuild.wipe(slot)


@pytest.fixture(scope="module")
def two_releases(tmp_path_factory: pytest.TempPathFactory, first_release: Path) -> Path:
    """A machine's folder with two releases that share a component, the second one active."""
    folder = tmp_path_factory.mktemp("machines")
    shutil.copytree(first_release, folder / "vendor", symlinks=True)
    vendor = Vendor(folder / "vendor")
    made = Machine(folder / "machine", vendor.url, root=vendor.root)
    other = {"engine-config": ("7", b"kept as it is")}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cycle, "say", made.said.append)
        for number in (2, 3):
            vendor.ship(f"r{number}", {PATTERN: (str(number), edition(number)), **other})
            made.install()
    return folder / "machine"


@pytest.fixture
def pair(tmp_path: Path, two_releases: Path) -> Machine:
    shutil.copytree(two_releases / "state", tmp_path / "copy" / "state", symlinks=True)
    made = Machine(tmp_path / "pair", "file:///nowhere", root=b"")
    made.places = made.places._replace(state=tmp_path / "copy" / "state")
    made.record = records.load(made.places.boot_record)
    return made


def test_intact_slots_are_reported_so(pair: Machine) -> None:
    assert {name: item.intact for name, item in pair.inspect().items()} == {"a": True, "b": True}


def test_a_shared_file_is_mended_from_the_other_slot(pair: Machine) -> None:
    file = pair.slot / "engine-config" / "engine-config.dat"
    file.unlink()
    report = pair.inspect()[pair.record.active or ""]
    assert report.intact
    assert report.repaired == ("engine-config/engine-config.dat",)
    assert file.read_bytes() == b"kept as it is"
    assert stat.S_IMODE(file.stat().st_mode) == 0o444


def test_a_file_that_only_this_slot_has_stays_damaged(pair: Machine) -> None:
    (pair.slot / PATTERN / f"{PATTERN}.dat").unlink()
    report = pair.inspect()[pair.record.active or ""]
    assert report.problems == (f"{PATTERN}/{PATTERN}.dat is missing",)
    assert report.damaged == (PATTERN,)


def test_a_file_isnt_mended_from_a_copy_that_was_altered_too(pair: Machine) -> None:
    for slot in ("a", "b"):
        file = pair.places.slot(slot) / "engine-config" / "engine-config.dat"
        file.chmod(0o644)
        file.write_bytes(b"altered the same")
    assert not any(item.intact for item in pair.inspect().values())


def test_what_isnt_part_of_the_release_is_taken_away(pair: Machine) -> None:
    (pair.slot / PATTERN / "stray").write_text("x")
    os.mkfifo(pair.slot / "fifo")
    report = pair.inspect()[pair.record.active or ""]
    assert report.intact
    assert set(report.repaired) == {f"{PATTERN}/stray", "fifo"}


def test_a_stray_file_that_cant_be_removed_is_reported_not_fatal(
    pair: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    (pair.slot / "immutable").write_text("x")
    monkeypatch.setattr(durable, "remove", refuse)
    report = pair.inspect()[pair.record.active or ""]
    assert report.problems == ("immutable is not part of the release",)


def test_mending_never_leaves_the_slot_through_a_link(pair: Machine, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = pair.slot / "engine-config"
    (folder / "engine-config.dat").unlink()
    folder.rmdir()
    folder.symlink_to(elsewhere)
    report = pair.inspect()[pair.record.active or ""]
    assert list(elsewhere.iterdir()) == []
    assert report.intact
    assert not folder.is_symlink()


def test_a_slot_without_its_seal_or_with_another_one_is_told(pair: Machine) -> None:
    other = pair.places.slot(pair.spare)
    (pair.slot / seals.SEAL_NAME).unlink()
    (pair.slot / seals.SEAL_NAME).write_bytes((other / seals.SEAL_NAME).read_bytes())
    (other / seals.SEAL_NAME).unlink()
    found = pair.inspect()
    assert "isn't the one that was recorded" in found[pair.record.active or ""].problems[0]
    assert "is not sealed" in found[pair.spare].problems[0]
    assert found[pair.spare].content is None


def test_without_the_other_seal_nothing_is_mended(pair: Machine) -> None:
    (pair.places.slot(pair.spare) / seals.SEAL_NAME).unlink()
    (pair.slot / "engine-config" / "engine-config.dat").unlink()
    assert not pair.inspect()[pair.record.active or ""].intact
