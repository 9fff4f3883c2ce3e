"""Slots that are wiped, inspected and mended from each other."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from agent.fetcher import cycle
from agent.slots import record as records
from agent.slots import seal as seals
from agent.stager import rebuild
from feed import durable
from tests.support.staging import PATTERN, Machine, edition
from tests.support.vendor import Vendor


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
