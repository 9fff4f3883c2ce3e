"""What a failure of the guardian itself does to a trial (ADR 0009)."""

from __future__ import annotations

from agent.guardian import lifecycle
from agent.slots.record import Attempt, BootRecord, Phase, SlotContent

CONTENT = SlotContent(release="r", digest="d" * 64, seal="e" * 64)
ATTEMPT = Attempt(
    id="1",
    release="r175",
    from_release="r173",
    changed={"virus-pattern": "c" * 64},
    trigger="schedule",
    flipped_at=0.0,
)
AT_REST = BootRecord(active="a", slots={"a": CONTENT, "b": CONTENT})


def trial() -> BootRecord:
    return lifecycle.flipped(AT_REST, ATTEMPT, tries=1, boot_id="one")


def faulted(record: BootRecord, times: int) -> BootRecord:
    for _ in range(times):
        record = lifecycle.faulted(record)
    return record


def test_the_faults_that_may_be_chance_leave_the_trial_on() -> None:
    record = faulted(trial(), lifecycle.FAULTS_ALLOWED)
    assert (record.phase, record.active) == (Phase.TRIAL, "b")
    assert record.faults == lifecycle.FAULTS_ALLOWED


def test_a_release_that_brings_the_guardian_down_each_time_is_reverted() -> None:
    record = faulted(trial(), lifecycle.FAULTS_ALLOWED + 1)
    assert (record.phase, record.active) == (Phase.REVERTING, "a")
    assert record.attempt is not None
    assert record.attempt.reason == "guardian_faults"
    assert record.attempt.quarantine


def test_a_fault_is_no_orderly_stop() -> None:
    record = lifecycle.faulted(lifecycle.stopped_cleanly(trial()))
    assert lifecycle.booted(record, boot_id="two").phase is Phase.REVERTING


def test_faults_outside_a_trial_change_nothing() -> None:
    assert lifecycle.faulted(AT_REST) == AT_REST
    keeping = lifecycle.keeping(trial(), reason="healthy", sentence="")
    assert lifecycle.faulted(keeping) == keeping


def test_each_trial_begins_without_faults() -> None:
    record = lifecycle.keeping(faulted(trial(), 2), reason="healthy", sentence="")
    assert lifecycle.settled(record).faults == 0
