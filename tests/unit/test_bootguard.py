"""What the boot guard makes of a machine that comes up, in one process."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent import config, host
from agent.guardian import bootguard, notes, settings
from agent.guardian.notes import Notes
from agent.slots import record as records
from agent.slots import seal as seals
from agent.slots.record import Attempt, BootRecord, Phase
from feed import durable
from tests.support.rooms import Rooms

ATTEMPT = Attempt(
    id="1", release="r173", from_release="r171", changed={}, trigger="test", flipped_at=0.0
)


@pytest.fixture
def rooms(tmp_path: Path) -> Rooms:
    """r171 is the way back in slot a; r173 is on trial in slot b, of an earlier boot."""
    made = Rooms(tmp_path)
    made.install("a", "r171", {"virus-pattern": "171"})
    made.install("b", "r173", {"virus-pattern": "173"})
    trial = msgspec.structs.replace(
        made.ledger.record,
        phase=Phase.TRIAL,
        active="b",
        boot_id="an earlier boot",
        attempt=ATTEMPT,
    )
    made.ledger.commit(trial)
    made.ledger.switch_link()
    return made


@pytest.fixture(autouse=True)
def _disk() -> Iterator[None]:
    yield
    durable.set_fault_hook(None)


def stored(rooms: Rooms) -> BootRecord:
    return records.load(rooms.layout.boot_record)


def change(rooms: Rooms, **values: object) -> None:
    record = msgspec.structs.replace(stored(rooms), **values)
    records.store(rooms.layout.boot_record, record)


def unseal(rooms: Rooms, slot: str) -> None:
    (rooms.layout.slot(slot) / seals.SEAL_NAME).unlink()


def guard(rooms: Rooms) -> int:
    return bootguard.guard(rooms.ledger.config, rooms.layout)


def test_the_start_is_counted_and_the_trial_goes_on_while_a_try_is_left(rooms: Rooms) -> None:
    change(rooms, tries_left=1)
    assert guard(rooms) == 0
    after = stored(rooms)
    assert (after.phase, after.active, after.tries_left) == (Phase.TRIAL, "b", 0)
    assert after.boot_id == host.boot_id()


def test_without_a_try_left_the_prior_slot_is_linked(rooms: Rooms) -> None:
    assert guard(rooms) == 0
    after = stored(rooms)
    assert (after.phase, after.active) == (Phase.REVERTING, "a")
    assert after.attempt is not None
    assert (after.attempt.reason, after.attempt.quarantine) == ("tries_used_up", True)
    assert rooms.layout.current.resolve().name == "a"


def test_a_second_guard_in_the_same_boot_counts_nothing(rooms: Rooms) -> None:
    change(rooms, tries_left=2)
    guard(rooms)
    counted = stored(rooms)
    assert guard(rooms) == 0
    assert stored(rooms) == counted


def test_an_orderly_stop_costs_no_try_and_serves_once(rooms: Rooms) -> None:
    change(rooms, tries_left=0, clean_stop=True)
    guard(rooms)
    after = stored(rooms)
    assert (after.phase, after.clean_stop, after.tries_left) == (Phase.TRIAL, False, 0)
    change(rooms, boot_id="the boot that hung")
    guard(rooms)
    assert stored(rooms).phase is Phase.REVERTING


def test_a_damaged_record_is_rebuilt_and_what_was_on_trial_is_left(rooms: Rooms) -> None:
    notes.store(rooms.layout.trial_notes, Notes(attempt="1", slot="b"))
    rooms.layout.boot_record.write_bytes(b"{torn")
    assert guard(rooms) == 0
    after = stored(rooms)
    assert (after.phase, after.active) == (Phase.REVERTING, "a")
    assert rooms.layout.current.resolve().name == "a"
    assert rooms.layout.boot_record.with_name("boot.json.unreadable").exists()


def test_a_link_that_was_lost_is_made_again(rooms: Rooms) -> None:
    change(rooms, phase=Phase.COMMITTED, attempt=None)
    rooms.layout.current.unlink()
    assert guard(rooms) == 0
    assert rooms.layout.current.resolve().name == "b"


def test_settings_of_the_release_that_is_left_are_put_back(rooms: Rooms, tmp_path: Path) -> None:
    target = tmp_path / "scan.conf"
    target.write_text("depth = 9\n")
    previous = settings.Previous(file=str(target), content=None, mode=0o644)
    undo = settings.Undo(owner=stored(rooms).slots["b"].seal, previous=(previous,))
    rooms.layout.settings_undo.write_bytes(msgspec.json.encode(undo))
    assert guard(rooms) == 0
    assert not target.exists()


def test_a_fresh_machine_is_left_as_it_is(tmp_path: Path) -> None:
    rooms = Rooms(tmp_path)
    rooms.layout.slots.rmdir()
    before = sorted(rooms.layout.state.iterdir())
    assert guard(rooms) == 0
    assert sorted(rooms.layout.state.iterdir()) == before


def test_a_running_guardian_has_seen_to_it(
    rooms: Rooms, capsys: pytest.CaptureFixture[str]
) -> None:
    before = rooms.layout.boot_record.read_bytes()
    lock = host.lock_file(rooms.layout.lock)
    assert guard(rooms) == bootguard.EXIT_RUNNING
    lock.release()
    assert rooms.layout.boot_record.read_bytes() == before
    assert f"pid {os.getpid()}" in capsys.readouterr().err


def test_a_full_disk_doesnt_stop_the_way_back(rooms: Rooms) -> None:
    def hook(point: str, where: str) -> None:
        if point == "write" and where.endswith("boot.json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), where)

    durable.set_fault_hook(hook)
    assert guard(rooms) == 0
    assert rooms.layout.current.resolve().name == "a"


def test_a_full_disk_without_room_for_a_pid_doesnt_stop_the_way_back(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    assert guard(rooms) == 0
    assert rooms.layout.current.resolve().name == "a"


def test_a_pid_in_the_lock_leaves_nothing_of_a_longer_one(rooms: Rooms) -> None:
    """It is written over in place, which needs no room on the disk."""
    lock = rooms.layout.lock
    host.lock_file(lock).release()
    size = lock.stat().st_size
    lock.write_bytes(b"12345678".ljust(size - 1) + b"\n")
    held = host.lock_file(lock)
    assert (lock.stat().st_size, lock.read_text().strip()) == (size, str(os.getpid()))
    held.release()


def test_a_full_disk_doesnt_keep_a_hang_from_being_counted(rooms: Rooms) -> None:
    downloaded = rooms.layout.cache / "pattern"
    downloaded.parent.mkdir(exist_ok=True)
    downloaded.write_bytes(b"what can be downloaded again")

    def hook(point: str, where: str) -> None:
        if point == "write" and where.endswith("boot.json") and downloaded.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), where)

    change(rooms, boot_id=host.boot_id())
    durable.set_fault_hook(hook)
    assert bootguard.count_hang(rooms.ledger.config, rooms.layout) == 0
    assert stored(rooms).faults == 1


def test_a_state_folder_that_cant_be_written_is_said(
    rooms: Rooms, capsys: pytest.CaptureFixture[str]
) -> None:
    change(rooms, phase=Phase.COMMITTED, attempt=None)
    rooms.layout.current.unlink()

    def hook(point: str, where: str) -> None:
        if point == "rename":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), where)

    durable.set_fault_hook(hook)
    assert guard(rooms) == bootguard.EXIT_STATE
    assert "Read-only file system" in capsys.readouterr().err


def test_a_configuration_that_cant_be_used_doesnt_stop_the_way_back(
    rooms: Rooms, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "config.toml"
    broken.write_text(f'state_dir = "{rooms.layout.state}"\nmisspelt = 1\n')
    assert bootguard.main(["--config", str(broken)]) == bootguard.EXIT_CONFIG
    assert stored(rooms).phase is Phase.REVERTING
    assert "misspelt" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["state_dir = [1]\n", "not toml", 'state_dir = "\\u0000"\n'])
def test_what_cant_be_salvaged_of_a_configuration_is_the_default(tmp_path: Path, text: str) -> None:
    broken = tmp_path / "config.toml"
    broken.write_text(text)
    assert config.salvaged(broken).state_dir is None
    assert config.salvaged(tmp_path / "missing").state_dir is None


def test_the_third_hang_of_the_guardian_leaves_the_release(rooms: Rooms) -> None:
    change(rooms, boot_id=host.boot_id())
    for faults in (1, 2):
        assert bootguard.count_hang(rooms.ledger.config, rooms.layout) == 0
        assert (stored(rooms).phase, stored(rooms).faults) == (Phase.TRIAL, faults)
    bootguard.count_hang(rooms.ledger.config, rooms.layout)
    after = stored(rooms)
    assert after.phase is Phase.REVERTING
    assert after.attempt is not None
    assert after.attempt.reason == "guardian_faults"
    assert rooms.layout.current.resolve().name == "a"


def test_a_hang_at_rest_counts_nothing(rooms: Rooms) -> None:
    change(rooms, phase=Phase.COMMITTED, attempt=None)
    before = stored(rooms)
    assert bootguard.count_hang(rooms.ledger.config, rooms.layout) == 0
    assert stored(rooms) == before


def test_an_orderly_stop_that_took_too_long_is_no_hang_and_stays_noted(rooms: Rooms) -> None:
    change(rooms, boot_id=host.boot_id(), clean_stop=True)
    before = stored(rooms)
    assert bootguard.count_hang(rooms.ledger.config, rooms.layout) == 0
    assert stored(rooms) == before


def test_a_hang_beside_a_record_that_is_torn_leaves_what_was_on_trial(rooms: Rooms) -> None:
    notes.store(rooms.layout.trial_notes, Notes(attempt="1", slot="b"))
    rooms.layout.boot_record.write_bytes(b"{torn")
    assert bootguard.count_hang(rooms.ledger.config, rooms.layout) == 0
    assert (stored(rooms).phase, stored(rooms).active) == (Phase.REVERTING, "a")


# A way back that has lost its seal.


def is_held_on_b(rooms: Rooms, reason: str) -> bool:
    after = stored(rooms)
    assert after.held is not None
    assert after.attempt is not None
    assert "slot a isn't sealed" in after.held.sentence
    found = (after.phase, after.active, after.held.reason, after.attempt.held)
    return found == (Phase.KEEPING, "b", reason, True) and (
        rooms.layout.current.resolve().name == "b"
    )


def test_without_a_try_left_the_sealed_slot_is_held_where_the_prior_one_isnt_sealed(
    rooms: Rooms,
) -> None:
    unseal(rooms, "a")
    assert guard(rooms) == 0
    assert is_held_on_b(rooms, "tries_used_up")
    guarded = stored(rooms)
    assert guard(rooms) == 0
    assert stored(rooms) == guarded


def test_the_third_hang_holds_the_sealed_slot_where_the_prior_one_isnt_sealed(
    rooms: Rooms,
) -> None:
    unseal(rooms, "a")
    change(rooms, boot_id=host.boot_id(), faults=2)
    assert bootguard.count_hang(rooms.ledger.config, rooms.layout) == 0
    assert is_held_on_b(rooms, "guardian_faults")


def test_a_revert_whose_slot_lost_its_seal_before_it_was_settled_is_turned_back(
    rooms: Rooms,
) -> None:
    guard(rooms)
    assert rooms.layout.current.resolve().name == "a"
    unseal(rooms, "a")
    assert guard(rooms) == 0
    assert is_held_on_b(rooms, "tries_used_up")


def test_a_full_disk_leaves_the_link_on_the_sealed_slot(rooms: Rooms) -> None:
    unseal(rooms, "a")

    def hook(point: str, where: str) -> None:
        if point == "write" and where.endswith("boot.json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), where)

    durable.set_fault_hook(hook)
    assert guard(rooms) == 0
    assert rooms.layout.current.resolve().name == "b"


def test_with_neither_slot_sealed_the_way_back_is_taken(rooms: Rooms) -> None:
    unseal(rooms, "a")
    unseal(rooms, "b")
    assert guard(rooms) == 0
    assert (stored(rooms).phase, stored(rooms).active) == (Phase.REVERTING, "a")
