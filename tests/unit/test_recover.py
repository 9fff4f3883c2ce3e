"""What a guardian makes of the record at its start, when the disk is against it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import msgspec
import pytest

from agent.channel import Scheduled, SlotReport, Verified, VerifyJob
from agent.errors import ControlError
from agent.guardian import lifecycle, recovery
from agent.guardian.control import Request
from agent.guardian.fetching import FetcherLink
from agent.guardian.guardian import Guardian
from agent.guardian.lifecycle import State
from agent.guardian.staging import StagerLink
from agent.guardian.starter import Children
from agent.slots import record as records
from agent.slots import seal as seals
from agent.slots.record import Attempt, Held, Phase
from feed import durable
from tests.support.rooms import Rooms
from tests.support.turns import until

ATTEMPT = Attempt(
    id="1", release="r173", from_release="r171", changed={}, trigger="test", flipped_at=0.0
)


@pytest.fixture
def rooms(tmp_path: Path) -> Rooms:
    """r171 runs from slot a, r173 is sealed in slot b."""
    made = Rooms(tmp_path)
    made.install("a", "r171", {"virus-pattern": "171"})
    made.install("b", "r173", {"virus-pattern": "173"})
    made.ledger.switch_link()
    return made


@pytest.fixture(autouse=True)
def _disk() -> Iterator[None]:
    yield
    durable.set_fault_hook(None)


def guardian(rooms: Rooms) -> Guardian:
    made = Guardian(
        rooms.ledger,
        rooms.layout.state / "config.toml",
        starter=Children(rooms.ledger.loop, None),
    )
    made.fetcher = cast("FetcherLink", rooms.fetcher)
    made.attempts = rooms.attempts
    return made


def recover(rooms: Rooms) -> None:
    """What a guardian does at its start, before it is ready."""
    rebooted = recovery.count_boot(rooms.ledger)
    guardian(rooms).recover(rebooted=rebooted)


def full_disk(for_path: str, *, until_gone: Path | None = None) -> None:
    """No room for `for_path`, unless `until_gone` has been deleted."""

    def hook(point: str, where: str) -> None:
        full = until_gone is None or until_gone.exists()
        if full and point in {"write", "rename"} and where.endswith(for_path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), where)

    durable.set_fault_hook(hook)


def hung_in_trial(rooms: Rooms) -> None:
    """The machine went down in its only try: this boot goes back."""
    trial = lifecycle.flipped(rooms.ledger.record, ATTEMPT, tries=1, boot_id="an earlier one")
    rooms.ledger.commit(trial)
    rooms.ledger.switch_link()


def test_a_full_disk_does_not_keep_a_hung_machine_on_the_bad_slot(rooms: Rooms) -> None:
    hung_in_trial(rooms)
    full_disk("boot.json")
    recover(rooms)
    assert rooms.layout.current.resolve().name == "a"
    assert rooms.ledger.record.phase is Phase.REVERTING


def test_downloads_are_given_up_for_the_boot_record(rooms: Rooms) -> None:
    hung_in_trial(rooms)
    partial = rooms.layout.cache / "0.part"
    partial.write_bytes(b"x")
    full_disk("boot.json", until_gone=partial)
    recover(rooms)
    assert records.load(rooms.layout.boot_record).phase is Phase.REVERTING


def test_a_trial_goes_on_though_its_boot_cannot_be_counted(rooms: Rooms) -> None:
    rooms.ledger.commit(
        lifecycle.flipped(rooms.ledger.record, ATTEMPT, tries=2, boot_id="an earlier one")
    )
    full_disk("boot.json")
    recover(rooms)
    assert rooms.ledger.record.phase is Phase.TRIAL
    assert rooms.ledger.status.state is State.TRIAL


def report(rooms: Rooms, slot: str, *problems: str) -> SlotReport:
    held = rooms.ledger.record.slots["a" if slot == "a" else "b"]
    return SlotReport(
        slot="a" if slot == "a" else "b", known=held.seal, content=held, problems=problems
    )


def test_damage_that_cannot_be_left_for_want_of_room_is_repaired_instead(rooms: Rooms) -> None:
    """The write that is refused must not end the guardian at each of its starts."""
    full_disk("boot.json")
    found = Verified(reports=(report(rooms, "a", "is missing"), report(rooms, "b")))
    guardian(rooms)._verified(found, "start", rooms.ledger.record)
    assert rooms.ledger.record.active == "a"
    assert rooms.ledger.status.state is State.CHECKING


def test_damage_is_never_left_for_what_took_the_machine_down(rooms: Rooms) -> None:
    """There would be no trial any more, so no boot would be counted either."""
    intact = report(rooms, "a")
    damaged = msgspec.structs.replace(report(rooms, "b", "altered"), damaged=("virus-pattern",))
    known = Held(reason="tries_used_up", sentence="it hung", since=1.0)
    trial = lifecycle.flipped(
        lifecycle.with_held(rooms.ledger.record, known), ATTEMPT, tries=1, boot_id="this"
    )
    rooms.ledger.commit(lifecycle.keeping(trial, reason="healthy", sentence="s"))
    rooms.ledger.status = lifecycle.resumed(rooms.ledger.record, now=0.0)
    rooms.trial.settle()
    rooms.until_ended()
    assert set(rooms.ledger.sealed_slots()) == {"b"}
    found = Verified(reports=(intact, damaged))
    guardian(rooms)._verified(found, "start", rooms.ledger.record)
    assert rooms.ledger.record.active == "b"
    assert (rooms.ledger.status.state, rooms.ledger.status.reason) == (State.CHECKING, "repair")


def test_what_waited_for_a_fetcher_begins_when_there_is_one(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = guardian(rooms)
    with monkeypatch.context() as without:
        without.setattr(rooms.fetcher, "order", lambda _order: False)
        rooms.attempts.due("repair")
    assert rooms.ledger.status.state is State.IDLE
    made._hear(Scheduled(next_check=0.0))
    rooms.turns(2)
    assert rooms.ledger.status.reason == "repair"


def test_the_slot_that_a_revert_returns_to_is_verified(rooms: Rooms) -> None:
    """It may have rotted while it wasn't read; going back comes first all the same."""
    made = guardian(rooms)
    made.stager = cast("StagerLink", rooms.stager)
    rooms.ledger.commit(
        lifecycle.flipped(rooms.ledger.record, ATTEMPT, tries=1, boot_id=rooms.ledger.boot_id)
    )
    rooms.ledger.status = lifecycle.resumed(rooms.ledger.record, now=0.0)
    made.trial.revert_now("cpu_pinned", "pinned", quarantined=True)
    until(rooms.loop, lambda: rooms.stager.jobs)
    job, _ = rooms.stager.jobs[0]
    assert isinstance(job, VerifyJob)
    assert list(job.slots) == ["a"]


def test_an_administrator_isnt_taken_back_to_a_slot_without_its_seal(rooms: Rooms) -> None:
    made = guardian(rooms)
    rooms.ledger.commit(
        lifecycle.flipped(rooms.ledger.record, ATTEMPT, tries=1, boot_id=rooms.ledger.boot_id)
    )
    (rooms.layout.slot("a") / seals.SEAL_NAME).unlink()
    with pytest.raises(ControlError, match="slot a isn't sealed"):
        made.acting_handlers()["rollback"](Request(do="rollback"))
    assert rooms.ledger.record.phase is Phase.TRIAL


def test_an_administrator_isnt_taken_back_to_the_very_same_release(tmp_path: Path) -> None:
    """As after a repair: its settings would be undone and all of it quarantined, and it runs."""
    rooms = Rooms(tmp_path)
    rooms.install("a", "r173", {"virus-pattern": "173"})
    rooms.install("b", "r173", {"virus-pattern": "173"})
    with pytest.raises(ControlError, match="both slots hold r173"):
        guardian(rooms).acting_handlers()["rollback"](Request(do="rollback"))
    assert rooms.ledger.record.phase is Phase.COMMITTED


def test_a_fault_is_counted_last_and_whatever_ending_the_children_does(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guardian that hangs there is ended, and counted, by the service manager: once."""
    made = guardian(rooms)
    rooms.ledger.commit(
        lifecycle.flipped(rooms.ledger.record, ATTEMPT, tries=1, boot_id=rooms.ledger.boot_id)
    )
    meanwhile: list[int] = []

    def broken() -> None:
        meanwhile.append(records.load(rooms.layout.boot_record).faults)
        raise RuntimeError("half a callback is no state to rely on")

    monkeypatch.setattr(made.errands, "end", broken)
    with pytest.raises(RuntimeError):
        made.fail()
    assert meanwhile == [0]
    assert records.load(rooms.layout.boot_record).faults == 1
