"""What a disk is held to after a power cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import promises
from tests.support.promises import Notes

SEAL = "state/slots/a/release.json"


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    (tmp_path / SEAL).parent.mkdir(parents=True)
    (tmp_path / SEAL).write_bytes(b"r171")
    return Notes(tmp_path)


def remove(notes: Notes, folder: Path, *, flushed: bool = True) -> None:
    notes.hear("remove", SEAL)
    (folder / SEAL).unlink()
    if flushed:
        notes.hear("dirsync", str(Path(SEAL).parent))
        notes.hear("done", SEAL)


def test_a_file_that_is_back_after_its_removal_was_flushed_is_a_broken_promise(
    tmp_path: Path, notes: Notes
) -> None:
    remove(notes, tmp_path)
    promises.power_fails(tmp_path)
    (tmp_path / SEAL).write_bytes(b"r171")
    (said,) = promises.broken(tmp_path)
    assert SEAL in said
    assert promises.broken(tmp_path) == []


def test_what_is_said_to_be_flushed_after_the_cut_is_no_promise(
    tmp_path: Path, notes: Notes
) -> None:
    promises.power_fails(tmp_path)
    remove(notes, tmp_path)
    (tmp_path / SEAL).write_bytes(b"r171")
    assert promises.broken(tmp_path) == []


def test_a_removal_that_was_not_flushed_may_be_there_or_not(tmp_path: Path, notes: Notes) -> None:
    remove(notes, tmp_path, flushed=False)
    promises.power_fails(tmp_path)
    assert promises.broken(tmp_path) == []


def test_what_was_flushed_before_the_cut_and_changed_after_it_may_be_either(
    tmp_path: Path, notes: Notes
) -> None:
    remove(notes, tmp_path)
    promises.power_fails(tmp_path)
    notes.hear("append", SEAL)
    (tmp_path / SEAL).write_bytes(b"r173")
    notes.hear("dirsync", SEAL)
    notes.hear("done", SEAL)
    assert promises.broken(tmp_path) == []
    remove(notes, tmp_path)
    assert promises.broken(tmp_path) == []
