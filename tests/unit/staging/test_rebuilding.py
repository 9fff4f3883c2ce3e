"""From a feed to a sealed slot: whole, by an incremental, by a chain; flushed, and read again."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from agent.channel import (
    HandedOver,
    NeedsFull,
    Progress,
    Staged,
    StageRefused,
)
from agent.slots import seal as seals
from agent.stager import rebuild
from feed import durable
from feed.rollout import Decision
from tests.support.staging import PATTERN, Machine, content, edition
from tests.support.vendor import Vendor


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
