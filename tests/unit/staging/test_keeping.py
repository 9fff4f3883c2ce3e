"""What a release leaves as it was: files kept and renamed, folders copied or shared."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.channel import (
    HandedOver,
    NeedsFull,
    Staged,
    StageRefused,
)
from agent.slots import seal as seals
from agent.stager import clone
from feed.rollout import Decision
from tests.support.staging import BASE, PATTERN, Machine, edition
from tests.support.vendor import Vendor


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
