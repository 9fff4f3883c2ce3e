"""What the guardian does with two bad slots, by its own books."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.channel import SlotReport, Staged, Verified, VerifyJob
from agent.guardian import bad_slots, bootguard, lifecycle, recovery
from agent.guardian.health import Prober
from agent.guardian.history import Outcome
from agent.guardian.ledger import Ledger
from agent.guardian.trial import Trial
from agent.loop import Loop
from agent.slots import record as records
from agent.slots import seal as seals
from agent.slots.record import Attempt, BootRecord, Held, Phase, SlotContent, SlotName
from feed import durable
from feed.manifest import Activation, HealthPolicy
from tests.support.rooms import Rooms, build, handed_over
from tests.support.turns import until

HELD = Held(reason="cpu_pinned", sentence="s", since=1.0)


@pytest.fixture
def rooms(tmp_path: Path) -> Rooms:
    made = Rooms(tmp_path)
    made.install("a", "r171", {"virus-pattern": "171"})
    made.install("b", "r173", {"virus-pattern": "173"})
    return made


@pytest.fixture(autouse=True)
def _disk() -> Iterator[None]:
    yield
    durable.set_fault_hook(None)


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


def trying_its_first(folder: Path) -> Rooms:
    """A machine without any release but the one that is on trial, r171 in slot a."""
    made = Rooms(folder / "fresh")
    held = build(made.layout.slot("a"), "r171", {"virus-pattern": "171"})
    made.ledger.commit(lifecycle.sealed(made.ledger.record, "a", held))
    attempt = Attempt(
        id="1", release="r171", from_release=None, changed={}, trigger="t", flipped_at=1.0
    )
    made.ledger.commit(
        lifecycle.flipped(made.ledger.record, attempt, tries=1, boot_id=made.ledger.boot_id)
    )
    return made


def test_a_first_release_that_fails_has_nothing_to_be_held_against(tmp_path: Path) -> None:
    made = trying_its_first(tmp_path)
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


# A way back without a seal.


def unseal(rooms: Rooms, slot: SlotName) -> None:
    (rooms.layout.slot(slot) / seals.SEAL_NAME).unlink()


def hung(rooms: Rooms) -> None:
    """The record of a machine that went down in its trial, as the boot guard left it."""
    on_trial(rooms)
    fallen = lifecycle.booted(rooms.ledger.record, boot_id="the next")
    rooms.ledger.commit(bad_slots.way_back(rooms.ledger, fallen))
    rooms.ledger.status = lifecycle.resumed(rooms.ledger.record, now=0.0)


def test_what_is_held_at_a_boot_is_settled_with_both_slots_known_and_its_seal_there(
    rooms: Rooms,
) -> None:
    unseal(rooms, "a")
    hung(rooms)
    rooms.trial.settle()
    rooms.until_ended()
    record = rooms.ledger.record
    assert (record.phase, record.active) == (Phase.COMMITTED, "b")
    assert record.held is not None
    assert record.held.reason == "tries_used_up"
    assert [item.outcome for item in rooms.outcomes] == ["held"]
    assert [item.release for item in rooms.ledger.quarantine] == ["r173"]
    assert set(rooms.ledger.sealed_slots()) == {"b"}
    assert rooms.layout.current.resolve().name == "b"
    assert rooms.ledger.status.reason == "both_slots_bad"


def test_a_seal_that_is_lost_while_a_revert_is_settled_turns_it_back(rooms: Rooms) -> None:
    hung(rooms)
    assert rooms.ledger.record.phase is Phase.REVERTING
    unseal(rooms, "a")
    rooms.trial.settle()
    rooms.until_ended()
    record = rooms.ledger.record
    assert (record.phase, record.active) == (Phase.COMMITTED, "b")
    assert [item.outcome for item in rooms.outcomes] == ["held"]
    assert set(rooms.ledger.sealed_slots()) == {"b"}
    assert rooms.layout.current.resolve().name == "b"


def test_a_trial_that_fails_is_kept_where_the_prior_slot_has_just_lost_its_seal(
    rooms: Rooms,
) -> None:
    on_trial(rooms)
    unseal(rooms, "a")  # no verification has seen it
    assert bad_slots.to_hold(rooms.ledger, "cpu_pinned", "pinned") is not None
    rooms.trial.revert_now("cpu_pinned", "pinned", quarantined=True)
    rooms.until_ended()
    assert rooms.ledger.record.active == "b"
    assert [item.outcome for item in rooms.outcomes] == ["held"]


class Fall(BaseException):
    """The machine stops here."""


def fall_at(number: int) -> None:
    """Stop the machine at its durable step `number`, counted from 1."""
    passed = itertools.count(1)

    def hook(_point: str, _where: str) -> None:
        if next(passed) == number:
            raise Fall

    durable.set_fault_hook(hook)


def start(rooms: Rooms) -> Ledger:
    """A boot guard and a guardian, until nothing is due any more."""
    bootguard.guard(rooms.ledger.config, rooms.layout)
    loop = Loop()
    ledger = Ledger(rooms.ledger.config, rooms.layout, loop)
    recovery.count_boot(ledger)
    ledger.prepare()
    ledger.status = lifecycle.resumed(ledger.record, now=0.0)
    ended: list[Outcome] = []
    trial = Trial(ledger, Prober(()), on_end=ended.append, ask_source=lambda: None)
    if ledger.record.phase is not Phase.COMMITTED:
        trial.settle()
        until(loop, lambda: ended)
        assert [item.outcome for item in ended] == ["held"]
    loop.close()
    return ledger


@pytest.mark.parametrize("late", [False, True], ids=["before the boot", "after it was counted"])
def test_a_fall_at_any_step_of_holding_leaves_the_sealed_slot_held(
    tmp_path: Path, late: bool
) -> None:
    for number in itertools.count(1):
        rooms = Rooms(tmp_path / str(number))
        rooms.install("a", "r171", {"virus-pattern": "171"})
        rooms.install("b", "r173", {"virus-pattern": "173"})
        on_trial(rooms)
        earlier = msgspec.structs.replace(rooms.ledger.record, boot_id="an earlier boot")
        rooms.ledger.commit(earlier)
        if late:
            bootguard.guard(rooms.ledger.config, rooms.layout)
        unseal(rooms, "a")
        fall_at(number)
        try:
            start(rooms)
            fell = False
        except Fall:
            fell = True
        durable.set_fault_hook(None)
        ledger = start(rooms)
        assert (ledger.record.phase, ledger.record.active) == (Phase.COMMITTED, "b"), number
        assert ledger.record.held is not None
        assert ledger.record.held.reason == "tries_used_up"
        assert set(ledger.sealed_slots()) == {"b"}
        assert [item.release for item in ledger.quarantine] == ["r173"]
        assert rooms.layout.current.resolve().name == "b"
        if not fell:
            break
    assert number > 10


def test_a_first_release_that_fails_leaves_no_seal_behind(tmp_path: Path) -> None:
    """There is nothing to hold it against: a lost record must not bring it back."""
    made = trying_its_first(tmp_path)
    made.ledger.status = lifecycle.resumed(made.ledger.record, now=0.0)
    made.trial.revert_now("cpu_pinned", "pinned", quarantined=True)
    made.until_ended()
    assert made.ledger.record.active is None
    assert made.ledger.sealed_slots() == {}


SLOTS: dict[SlotName, SlotContent] = {
    "a": SlotContent(release="r171", digest="1" * 64, seal="2" * 64),
    "b": SlotContent(release="r173", digest="3" * 64, seal="4" * 64),
}
NAMES = st.sampled_from(["a", "b"])


@given(
    st.sampled_from(Phase),
    NAMES,
    st.sets(NAMES),
    st.sampled_from(["tries_used_up", "guardian_faults", "rollback", "slot_damaged", "cpu_pinned"]),
)
def test_no_revert_goes_to_an_unsealed_slot_while_the_other_is_sealed(
    phase: Phase, active: SlotName, sealed: set[SlotName], reason: str
) -> None:
    attempt = Attempt(
        id="1",
        release="r173",
        from_release="r171",
        changed={},
        trigger="t",
        flipped_at=1.0,
        reason=reason,
    )
    record = BootRecord(phase=phase, active=active, slots=SLOTS, attempt=attempt)
    after = bad_slots.turned_back(record, sealed, now=5.0)
    is_lost = phase is Phase.REVERTING and active not in sealed and record.spare in sealed
    if not is_lost:
        assert after is record
        return
    assert (after.phase, after.active, after.slots) == (Phase.KEEPING, record.spare, SLOTS)
    assert after.held is not None
    assert (after.held.reason, after.held.since) == (reason, 5.0)
    assert records.parse(records.serialize(after), where="test") == after
    assert bad_slots.turned_back(after, sealed, now=6.0) is after
    assert lifecycle.settled(after).held == after.held
