"""When a start of the machine uses up a try of the trial, and when it doesn't (ADR 0008)."""

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


def trial(*, tries: int = 1) -> BootRecord:
    """A trial in slot b that was begun in boot one."""
    before = BootRecord(active="a", slots={"a": CONTENT, "b": CONTENT})
    return lifecycle.flipped(before, ATTEMPT, tries=tries, boot_id="one")


def test_a_machine_that_went_down_in_its_only_try_comes_back_on_the_prior_slot() -> None:
    after = lifecycle.booted(trial(), boot_id="two")
    assert (after.phase, after.active) == (Phase.REVERTING, "a")
    assert after.attempt is not None
    assert after.attempt.reason == "tries_used_up"
    assert after.attempt.quarantine


def test_each_start_without_an_orderly_stop_uses_up_one_try() -> None:
    second = lifecycle.booted(trial(tries=2), boot_id="two")
    assert (second.phase, second.tries_left) == (Phase.TRIAL, 0)
    assert lifecycle.booted(second, boot_id="three").phase is Phase.REVERTING


def test_a_restarted_guardian_uses_up_no_try() -> None:
    assert lifecycle.booted(trial(), boot_id="one") == trial()


def test_an_orderly_shutdown_uses_up_no_try_once() -> None:
    stopped = lifecycle.stopped_cleanly(trial())
    second = lifecycle.booted(stopped, boot_id="two")
    assert (second.phase, second.clean_stop) == (Phase.TRIAL, False)
    assert lifecycle.booted(second, boot_id="three").phase is Phase.REVERTING


def test_a_hang_after_a_restarted_guardian_is_no_orderly_stop() -> None:
    stopped = lifecycle.stopped_cleanly(trial())
    restarted = lifecycle.booted(stopped, boot_id="one")
    assert not restarted.clean_stop
    assert lifecycle.booted(restarted, boot_id="two").phase is Phase.REVERTING
