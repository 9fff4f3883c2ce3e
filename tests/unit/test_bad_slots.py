"""What the guardian does with two bad slots, by its own books."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.channel import SlotReport, Staged, Verified, VerifyJob
from agent.guardian import bad_slots, lifecycle
from agent.slots.record import Attempt, Held, Phase, SlotName
from feed.manifest import Activation, HealthPolicy
from tests.support.rooms import Rooms, build, handed_over

HELD = Held(reason="cpu_pinned", sentence="s", since=1.0)


@pytest.fixture
def rooms(tmp_path: Path) -> Rooms:
    made = Rooms(tmp_path)
    made.install("a", "r171", {"virus-pattern": "171"})
    made.install("b", "r173", {"virus-pattern": "173"})
    return made


def report(rooms: Rooms, slot: SlotName, *problems: str) -> SlotReport:
    held = rooms.ledger.record.slots[slot]
    damaged = ("virus-pattern",) if problems else ()
    return SlotReport(slot=slot, known=held.seal, content=held, problems=problems, damaged=damaged)


def on_trial(rooms: Rooms, *, cause: str = "update") -> None:
    attempt = Attempt(
        id="1",
        release="r173",
        from_release="r171",
        changed={"virus-pattern": "d" * 64},
        trigger="t",
        flipped_at=1.0,
        cause=cause,
    )
    record = lifecycle.flipped(rooms.ledger.record, attempt, tries=1, boot_id=rooms.ledger.boot_id)
    rooms.ledger.commit(record)
    rooms.ledger.status = lifecycle.resumed(record, now=0.0)


def test_a_failed_trial_goes_back_to_a_slot_that_nothing_is_known_against(rooms: Rooms) -> None:
    on_trial(rooms)
    rooms.trial.revert_now("cpu_pinned", "pinned", quarantined=True)
    rooms.until_ended()
    assert (rooms.ledger.record.active, rooms.ledger.record.held) == ("a", None)


def test_a_failed_trial_stays_where_the_prior_slot_is_worse(rooms: Rooms) -> None:
    on_trial(rooms)
    rooms.ledger.reports["a"] = report(rooms, "a", "virus-pattern.dat is missing")
    rooms.trial.revert_now("cpu_pinned", "pinned", quarantined=True)
    rooms.until_ended()
    record = rooms.ledger.record
    assert (record.phase, record.active) == (Phase.COMMITTED, "b")
    assert record.held is not None
    assert "slot a has altered files in virus-pattern" in record.held.sentence
    assert [item.outcome for item in rooms.outcomes] == ["held"]
    assert rooms.ledger.status.reason == "both_slots_bad"
    assert [item.release for item in rooms.ledger.quarantine] == ["r173"]
    assert set(rooms.ledger.sealed_slots()) == {"a", "b"}


def test_a_release_that_takes_the_machine_down_is_left_for_altered_files(rooms: Rooms) -> None:
    on_trial(rooms)
    rooms.ledger.reports["a"] = report(rooms, "a", "virus-pattern.dat is missing")
    assert bad_slots.to_hold(rooms.ledger, "tries_used_up", "it hung") is None
    rooms.trial.revert_now("guardian_faults", "unwatched", quarantined=True)
    rooms.until_ended()
    record = rooms.ledger.record
    assert record.active == "a"
    assert record.held is not None
    assert record.held.reason == "slot_damaged"


def test_an_administrator_who_asks_for_the_prior_slot_gets_it(rooms: Rooms) -> None:
    on_trial(rooms)
    rooms.ledger.reports["a"] = report(rooms, "a", "virus-pattern.dat is missing")
    rooms.trial.revert_now("rollback", "asked for", quarantined=True)
    rooms.until_ended()
    assert rooms.ledger.record.active == "a"


def test_a_first_release_that_fails_has_nothing_to_be_held_against(tmp_path: Path) -> None:
    made = Rooms(tmp_path / "fresh")
    held = build(made.layout.slot("a"), "r171", {"virus-pattern": "171"})
    made.ledger.commit(lifecycle.sealed(made.ledger.record, "a", held))
    attempt = Attempt(
        id="1", release="r171", from_release=None, changed={}, trigger="t", flipped_at=1.0
    )
    made.ledger.commit(
        lifecycle.flipped(made.ledger.record, attempt, tries=1, boot_id=made.ledger.boot_id)
    )
    assert bad_slots.to_hold(made.ledger, "cpu_pinned", "pinned") is None


def test_what_failed_before_is_held_against_the_prior_slot(rooms: Rooms) -> None:
    on_trial(rooms)
    rooms.ledger.commit(lifecycle.with_held(rooms.ledger.record, HELD))
    rooms.ledger.reports["a"] = report(rooms, "a")
    assert bad_slots.to_hold(rooms.ledger, "program_cut_off", "no source") is not None
    assert bad_slots.to_hold(rooms.ledger, "cpu_pinned", "pinned") is None  # no better
    rooms.trial.revert_now("crash_loop", "crashed", quarantined=True)
    rooms.until_ended()
    assert (rooms.ledger.record.active, rooms.ledger.record.held) == ("a", HELD)


def test_while_both_are_bad_the_damaged_content_isnt_asked_for_again(rooms: Rooms) -> None:
    rooms.ledger.reports["a"] = report(rooms, "a", "virus-pattern.dat is missing")
    assert rooms.ledger.describe_host().installed == {}
    rooms.ledger.record = lifecycle.with_held(rooms.ledger.record, HELD)
    assert set(rooms.ledger.describe_host().installed) == {"virus-pattern"}


def test_a_damaged_slot_is_mended_from_what_was_staged_before_the_flip(rooms: Rooms) -> None:
    rooms.ledger.reports["a"] = report(rooms, "a", "virus-pattern.dat is missing")
    order = rooms.begun()
    rooms.attempts.hear(handed_over(order.attempt))
    held = rooms.ledger.sealed_slots()["b"]
    staged = Staged(
        release="r173",
        content=held,
        changed={"virus-pattern": "d" * 64},
        activation=Activation(),
        health=HealthPolicy(),
        decision="offered",
    )
    rooms.stager.finish(staged)
    job, _ = rooms.stager.jobs[0]
    assert job == VerifyJob(slots={"a": rooms.ledger.record.slots["a"].seal})
    assert rooms.ledger.record.active == "a"  # not flipped yet
    rooms.stager.finish(Verified(reports=(report(rooms, "a"),)))
    rooms.turns()
    assert rooms.ledger.record.active == "b"
    assert rooms.ledger.reports["a"].intact


def test_a_repair_asks_for_everything_as_a_machine_without_a_release(rooms: Rooms) -> None:
    assert rooms.attempts.begin("agentctl", download=True, afresh=True)
    order = rooms.fetcher.orders[-1]
    assert order.host.installed == {}  # type: ignore[union-attr]
    assert order.host.active_release is None  # type: ignore[union-attr]
    assert order.full_only == ("*",)  # type: ignore[union-attr]
    rooms.attempts.hear(handed_over(order.attempt, release="r171"))  # type: ignore[union-attr]
    job, _ = rooms.stager.jobs[0]
    assert (job.reuse, job.active, job.slot) == (False, None, "b")  # type: ignore[union-attr]
