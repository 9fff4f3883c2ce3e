"""From a check that is due to a flip: who may say what, and when it counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import channel
from agent.channel import Begin, Checked, CycleFailed, Due, Progress, Staged, StageRefused
from agent.guardian import lifecycle
from agent.guardian.lifecycle import State
from agent.slots import seal as seals
from agent.slots.record import Attempt, Held, SlotContent
from feed.manifest import Activation, HealthPolicy
from tests.support.rooms import Rooms, build, handed_over

PATTERN = {"virus-pattern": "171"}


@pytest.fixture
def rooms(tmp_path: Path) -> Rooms:
    made = Rooms(tmp_path)
    made.install("a", "r171", PATTERN)
    return made


def checked(attempt: str) -> Checked:
    return Checked(attempt=attempt, source="s", decision="current", sentence="runs r171")


def staged(content: SlotContent, changed: dict[str, str]) -> Staged:
    return Staged(
        release=content.release,
        content=content,
        changed=changed,
        activation=Activation(),
        health=HealthPolicy(),
        decision="offered",
    )


def failed(attempt: str) -> CycleFailed:
    return CycleFailed(attempt=attempt, source="s", code="source_unreachable", sentence="no")


def test_after_a_handover_it_is_not_the_fetchers_turn(rooms: Rooms) -> None:
    """A fetcher that takes its word back doesn't end the attempt below the stager."""
    begun = rooms.begun()
    rooms.attempts.hear(handed_over(begun.attempt))
    for word in (
        checked(begun.attempt),
        failed(begun.attempt),
        handed_over(begun.attempt),
        Progress(release="r173", done=1, total=2),
    ):
        rooms.attempts.hear(word)
        assert rooms.ledger.status.state is State.STAGING
    assert len(rooms.stager.jobs) == 1


def test_the_last_check_says_what_the_handover_cost(rooms: Rooms) -> None:
    begun = rooms.begun()
    rooms.attempts.hear(handed_over(begun.attempt, fetch_bytes=30, requests=7))
    content = build(rooms.layout.slot("b"), "r173", {"virus-pattern": "173"})
    rooms.stager.finish(staged(content, {"virus-pattern": "d" * 64}))
    last = rooms.attempts.last_check
    assert last is not None
    assert (last.fetch_bytes, last.wire_bytes, last.full_bytes, last.requests) == (30, 1, 1, 7)


def test_words_before_any_order_and_about_other_attempts_are_dropped(rooms: Rooms) -> None:
    rooms.attempts.hear(handed_over("0"))
    rooms.attempts.hear(Progress(release="r173", done=1, total=2))
    assert rooms.ledger.status.state is State.IDLE
    rooms.begun()
    rooms.attempts.hear(handed_over("../../slots/a"))
    assert rooms.ledger.status.state is State.CHECKING
    assert not rooms.stager.jobs


def test_a_look_is_no_reason_to_take_a_release(rooms: Rooms) -> None:
    assert rooms.attempts.begin("agentctl", download=False)
    order = rooms.fetcher.orders[-1]
    assert isinstance(order, Begin)
    rooms.attempts.hear(handed_over(order.attempt))
    assert (rooms.ledger.status.state, rooms.ledger.status.reason) == (
        State.FAILED,
        "handover_unasked",
    )
    assert not rooms.stager.jobs


def test_a_result_of_an_attempt_that_is_over_flips_nothing(rooms: Rooms) -> None:
    begun = rooms.begun()
    rooms.attempts.hear(handed_over(begun.attempt))
    _, late = rooms.stager.jobs[0]
    rooms.stager.finish(StageRefused(code="trust_refused", sentence="no"))
    rooms.begun()
    content = build(rooms.layout.slot("b"), "r173", {"virus-pattern": "173"})
    late(staged(content, {}))
    assert rooms.ledger.status.state is State.CHECKING
    assert rooms.ledger.record.active == "a"


def test_a_refused_handover_costs_no_way_back(rooms: Rooms) -> None:
    held = rooms.install("b", "r169", {"virus-pattern": "169"})
    begun = rooms.begun()
    rooms.attempts.hear(handed_over(begun.attempt))
    assert "b" not in rooms.ledger.record.slots  # a power cut from here on finds an empty slot
    rooms.stager.finish(StageRefused(code="trust_refused", sentence="replayed"))
    assert rooms.ledger.record.slots["b"] == held


def test_a_spare_slot_that_was_touched_is_not_recalled(rooms: Rooms) -> None:
    rooms.install("b", "r169", {"virus-pattern": "169"})
    begun = rooms.begun()
    rooms.attempts.hear(handed_over(begun.attempt))
    (rooms.layout.slot("b") / seals.SEAL_NAME).unlink()
    rooms.stager.finish(StageRefused(code="disk_full", sentence="full"))
    assert "b" not in rooms.ledger.record.slots


def test_a_release_whose_seal_is_lost_keeps_its_name_when_asking_for_repair(rooms: Rooms) -> None:
    """Without it the vendor's plan would take the machine for one that has nothing yet."""
    (rooms.layout.slot("a") / seals.SEAL_NAME).unlink()
    rooms.ledger.adopt(rooms.ledger.record)
    host = rooms.begun().host
    assert (host.active_release, host.installed) == ("r171", {})


def test_a_repair_that_fails_its_trial_quarantines_nothing(rooms: Rooms) -> None:
    """The content is what ran before: it was the disk, or the day."""
    begun = rooms.begun()
    rooms.attempts.hear(handed_over(begun.attempt))
    content = build(rooms.layout.slot("b"), "r171", PATTERN)
    rooms.stager.finish(staged(content, {"virus-pattern": "d" * 64}))
    attempt = rooms.ledger.record.attempt
    assert attempt is not None
    assert (attempt.cause, attempt.quarantine) == ("repair", False)
    rooms.trial.revert_now("cpu_pinned", "pinned", quarantined=True)
    rooms.turns()
    assert rooms.ledger.record.active == "a"
    assert rooms.ledger.quarantine == ()


def repaired_with(rooms: Rooms, release: str, versions: dict[str, str]) -> Attempt:
    """The trial of what `agentctl repair` has brought."""
    assert rooms.attempts.begin("agentctl", download=True, afresh=True)
    order = rooms.fetcher.orders[-1]
    assert isinstance(order, Begin)
    rooms.attempts.hear(handed_over(order.attempt, release=release))
    content = build(rooms.layout.slot("b"), release, versions)
    seal, _ = seals.read(rooms.layout.slot("b"))
    rooms.stager.finish(staged(content, seal.contents))  # nothing counts as installed
    attempt = rooms.ledger.record.attempt
    assert attempt is not None
    return attempt


def test_a_repair_that_brings_another_release_is_an_update(tmp_path: Path) -> None:
    """Else what fails would be taken again at the next check."""
    rooms = Rooms(tmp_path)
    rooms.install("a", "r171", {**PATTERN, "engine": "1"})
    attempt = repaired_with(rooms, "r173", {"virus-pattern": "173", "engine": "1"})
    assert (attempt.cause, attempt.quarantine) == ("update", True)
    assert list(attempt.changed) == ["virus-pattern"]  # the engine is what ran
    rooms.trial.revert_now("cpu_pinned", "pinned", quarantined=True)
    rooms.turns()
    assert rooms.ledger.record.active == "a"
    assert [item.changed for item in rooms.ledger.quarantine] == [attempt.changed]


def test_a_repair_of_what_runs_is_no_update(rooms: Rooms) -> None:
    attempt = repaired_with(rooms, "r171", PATTERN)
    assert (attempt.cause, attempt.quarantine) == ("repair", False)


def test_with_two_bad_slots_a_repair_of_any_release_may_be_tried_again(rooms: Rooms) -> None:
    """It may be the machine that ails, and the release before the held one is all there is."""
    known = Held(reason="crash_loop", sentence="s", since=1.0)
    rooms.ledger.commit(lifecycle.with_held(rooms.ledger.record, known))
    attempt = repaired_with(rooms, "r169", {"virus-pattern": "169"})
    assert (attempt.cause, attempt.quarantine) == ("repair", False)


def test_a_check_that_came_due_while_slots_are_verified_begins_at_once(rooms: Rooms) -> None:
    """The stager's next job waits for it; the check needn't."""
    rooms.stager.jobs.append((None, lambda _: None))  # type: ignore[arg-type]
    rooms.attempts.due("start")
    assert rooms.ledger.status.state is State.CHECKING


def test_what_a_fetcher_says_at_length_is_cut() -> None:
    word = channel.clipped(Due(trigger="x" * 1_000_000))
    assert len(word.trigger) == channel.TEXT_CHARS_MAX + 1
    assert channel.clipped(Due(trigger="schedule")) == Due(trigger="schedule")
