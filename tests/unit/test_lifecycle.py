"""The lifecycle: what isn't listed is refused, and no order of events breaks the record."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from agent.errors import LifecycleError
from agent.guardian import lifecycle
from agent.guardian.lifecycle import TRANSITIONS, State, Status
from agent.slots import record as records
from agent.slots.record import Attempt, BootRecord, Phase, SlotContent, SlotName

SLOTS: tuple[SlotName, ...] = ("a", "b")


def content(number: int) -> SlotContent:
    return SlotContent(release=f"r{number}", digest=f"{number:064}", seal=f"{number:064}")


def attempt(number: int, prior: str | None) -> Attempt:
    return Attempt(
        id=str(number),
        release=f"r{number}",
        from_release=prior,
        changed={"virus-pattern": f"{number:064}"},
        trigger="schedule",
        flipped_at=float(number),
    )


def status(state: State) -> Status:
    return Status(state=state, reason="r", sentence="s", since=1.0, release="r1", done=5, total=9)


# The published states.


@pytest.mark.parametrize(("before", "after"), [*itertools.product(State, State)])
def test_an_attempt_passes_to_listed_states_only(before: State, after: State) -> None:
    def advance() -> Status:
        return lifecycle.advance(
            status(before), after, reason="why", sentence="because", now=2.0, release="r2"
        )

    if after is before:
        assert advance().since == 1.0
    elif after in TRANSITIONS[before]:
        assert (advance().state, advance().since) == (after, 2.0)
        assert (advance().done, advance().total) == (0, 0)
    else:
        with pytest.raises(LifecycleError, match=f"{before} doesn't lead to {after} .why: because"):
            advance()


def test_every_state_is_listed_and_leads_to_rest() -> None:
    assert set(TRANSITIONS) == set(State)
    for state in State:
        reached, fresh = {state}, {state}
        while fresh:
            fresh = {to for item in fresh for to in TRANSITIONS[item]} - reached
            reached |= fresh
        assert any(lifecycle.is_resting(item) for item in reached - {state})


def test_a_trial_ends_in_a_commit_or_a_revert_and_nothing_else() -> None:
    assert TRANSITIONS[State.TRIAL] == {State.COMMITTED, State.REVERTING}


def test_a_check_begins_at_rest_only() -> None:
    for state in State:
        assert lifecycle.is_resting(state) == (State.CHECKING in TRANSITIONS[state])


def test_progress_changes_nothing_but_itself() -> None:
    further = lifecycle.with_progress(status(State.DOWNLOADING), done=7, total=9)
    assert further == msgspec.structs.replace(status(State.DOWNLOADING), done=7)


def test_a_guardian_starts_with_what_its_record_tells() -> None:
    before = BootRecord(active="a", slots={"a": content(1), "b": content(2)})
    trial = lifecycle.flipped(before, attempt(2, "r1"), tries=1, boot_id="1")
    kept = lifecycle.keeping(trial, reason="healthy", sentence="s")
    back = lifecycle.reverting(trial, reason="cpu_pinned", sentence="it burned", quarantine=True)
    found = [lifecycle.resumed(item, now=9.0) for item in (before, trial, kept, back)]
    assert [item.state for item in found] == [
        State.IDLE,
        State.TRIAL,
        State.TRIAL,
        State.REVERTING,
    ]
    assert (found[1].release, found[1].since) == ("r2", 2.0)
    assert (found[3].reason, found[3].sentence) == ("cpu_pinned", "it burned")


# The boot record.


@given(st.integers(1, 10), st.integers(0, 30))
def test_a_release_gets_as_many_starts_as_it_was_given(tries: int, boots: int) -> None:
    before = BootRecord(active="a", slots={"a": content(1), "b": content(2)})
    record = lifecycle.flipped(before, attempt(2, "r1"), tries=tries, boot_id="boot 0")
    starts = 1
    for boot in range(1, boots + 1):
        record = lifecycle.booted(record, boot_id=f"boot {boot}")
        starts += record.phase is Phase.TRIAL
        assert lifecycle.booted(record, boot_id=f"boot {boot}") == record
    assert starts == min(tries, boots + 1)
    assert (record.phase is Phase.REVERTING) == (boots >= tries)


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 5))
def test_only_unclean_ends_cost_a_try(ends: list[bool], tries: int) -> None:
    before = BootRecord(active="a", slots={"a": content(1), "b": content(2)})
    record = lifecycle.flipped(before, attempt(2, "r1"), tries=tries, boot_id="boot 0")
    for boot, clean in enumerate(ends, start=1):
        if clean:
            record = lifecycle.stopped_cleanly(record)
        record = lifecycle.booted(record, boot_id=f"boot {boot}")
    assert (record.phase is Phase.REVERTING) == (ends.count(False) >= tries)


def test_outside_a_trial_nothing_counts() -> None:
    record = BootRecord(active="a", slots={"a": content(1)})
    assert lifecycle.booted(record, boot_id="other") == record
    assert not lifecycle.stopped_cleanly(record).clean_stop
    assert lifecycle.faulted(record) == record


def test_a_guardian_that_fails_again_and_again_gives_the_release_up() -> None:
    before = BootRecord(active="a", slots={"a": content(1), "b": content(2)})
    record = lifecycle.flipped(before, attempt(2, "r1"), tries=9, boot_id="1")
    for _ in range(lifecycle.FAULTS_ALLOWED):
        record = lifecycle.faulted(record)
        assert record.phase is Phase.TRIAL
    record = lifecycle.faulted(record)
    assert (record.phase, record.active) == (Phase.REVERTING, "a")
    assert record.attempt is not None
    assert (record.attempt.reason, record.attempt.quarantine) == ("guardian_faults", True)
    assert lifecycle.settled(record).faults == 0


PHASES = {
    Phase.COMMITTED: BootRecord(active="a", slots={"a": content(1), "b": content(2)}),
    Phase.TRIAL: lifecycle.flipped(
        BootRecord(active="a", slots={"a": content(1), "b": content(2)}),
        attempt(2, "r1"),
        tries=2,
        boot_id="1",
    ),
}
PHASES[Phase.KEEPING] = lifecycle.keeping(PHASES[Phase.TRIAL], reason="r", sentence="s")
PHASES[Phase.REVERTING] = lifecycle.reverting(
    PHASES[Phase.TRIAL], reason="r", sentence="s", quarantine=True
)

CHANGES: dict[str, tuple[Any, set[Phase]]] = {
    "empty": (lambda record: lifecycle.emptied(record, record.spare), {Phase.COMMITTED}),
    "seal": (lambda record: lifecycle.sealed(record, record.spare, content(3)), {Phase.COMMITTED}),
    "flip": (
        lambda record: lifecycle.flipped(record, attempt(3, "r1"), tries=1, boot_id="2"),
        {Phase.COMMITTED},
    ),
    "return": (lambda record: lifecycle.returning(record, attempt(3, "r1")), {Phase.COMMITTED}),
    "keep": (lambda record: lifecycle.keeping(record, reason="", sentence=""), {Phase.TRIAL}),
    "revert": (
        lambda record: lifecycle.reverting(record, reason="", sentence="", quarantine=False),
        {Phase.TRIAL},
    ),
    "settle": (lifecycle.settled, {Phase.KEEPING, Phase.REVERTING}),
}


@pytest.mark.parametrize(("change", "phase"), [*itertools.product(CHANGES, Phase)])
def test_each_change_of_the_record_belongs_to_its_phase(change: str, phase: Phase) -> None:
    make, allowed = CHANGES[change]
    if phase in allowed:
        make(PHASES[phase])
    else:
        with pytest.raises(LifecycleError, match=str(phase)):
            make(PHASES[phase])


@pytest.mark.parametrize("slot", SLOTS)
def test_the_active_slot_is_neither_emptied_nor_sealed(slot: SlotName) -> None:
    record = BootRecord(active=slot, slots={"a": content(1), "b": content(2)})
    with pytest.raises(LifecycleError, match=f"slot {slot}"):
        lifecycle.emptied(record, slot)
    with pytest.raises(LifecycleError, match=f"slot {slot}"):
        lifecycle.sealed(record, slot, content(3))


def test_nothing_leads_to_a_slot_that_isnt_sealed() -> None:
    record = BootRecord(active="a", slots={"a": content(1)})
    with pytest.raises(LifecycleError, match="slot b is not sealed"):
        lifecycle.flipped(record, attempt(2, "r1"), tries=1, boot_id="1")
    with pytest.raises(LifecycleError, match="slot b holds no release"):
        lifecycle.returning(record, attempt(2, "r1"))


def test_a_reverted_release_is_no_way_back() -> None:
    assert set(lifecycle.settled(PHASES[Phase.REVERTING]).slots) == {"a"}


def test_what_was_kept_leaves_its_way_back() -> None:
    after = lifecycle.settled(PHASES[Phase.KEEPING])
    assert (after.active, set(after.slots), after.attempt) == ("b", {"a", "b"}, None)


@pytest.mark.parametrize("linked", [None, "a", "b"])
@pytest.mark.parametrize("intact", [(), ("a",), ("b",), ("a", "b")])
def test_a_rebuilt_record_claims_nothing_but_what_is_sealed(
    intact: tuple[SlotName, ...], linked: SlotName | None
) -> None:
    record = lifecycle.rebuilt({name: content(1) for name in intact}, linked=linked)
    assert record.phase is Phase.COMMITTED
    assert set(record.slots) == set(intact)
    assert record.active == (linked if linked in intact else intact[0] if intact else None)


class Machine(RuleBasedStateMachine):
    """A machine's record through seals, flips, boots, verdicts and falls, in any order.

    Everything passes through the file's bytes after each step, as it does on
    a machine that may lose power at any of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.record = BootRecord()
        self.number = 0
        self.boot = 0
        self.starts_left = 0
        self.healthy_s = 0.0
        self.trusted: str | None = None  # the release that was last kept or gone back to

    def store(self, record: BootRecord) -> None:
        self.record = records.parse(records.serialize(record), where="boot.json")

    @property
    def phase(self) -> Phase:
        return self.record.phase

    @property
    def at_rest(self) -> bool:
        return self.phase is Phase.COMMITTED

    def next_attempt(self, release: str | None = None) -> Attempt:
        self.number += 1
        prior = self.record.content.release if self.record.content else None
        made = attempt(self.number, prior)
        return msgspec.structs.replace(made, release=release) if release else made

    @precondition(lambda self: self.at_rest)
    @rule()
    def empty(self) -> None:
        self.store(lifecycle.emptied(self.record, self.record.spare))

    @precondition(lambda self: self.at_rest)
    @rule()
    def seal(self) -> None:
        self.number += 1
        self.store(lifecycle.sealed(self.record, self.record.spare, content(self.number)))

    @precondition(lambda self: self.at_rest and self.record.spare in self.record.slots)
    @rule(tries=st.integers(1, 4))
    def flip(self, tries: int) -> None:
        release = self.record.slots[self.record.spare].release
        self.store(
            lifecycle.flipped(
                self.record, self.next_attempt(release), tries=tries, boot_id=str(self.boot)
            )
        )
        self.starts_left = tries - 1
        self.healthy_s = 0.0

    @precondition(lambda self: self.phase is Phase.TRIAL)
    @rule(seconds=st.floats(0, 1000))
    def observe(self, seconds: float) -> None:
        self.store(lifecycle.observed(self.record, healthy_s=seconds))
        self.healthy_s = max(self.healthy_s, seconds)
        assert self.record.healthy_s == self.healthy_s

    @rule()
    def restart_guardian(self) -> None:
        before = self.record
        self.store(lifecycle.booted(lifecycle.stopped_cleanly(before), boot_id=before.boot_id))
        assert self.record == before or before.phase is not Phase.TRIAL
        assert self.record.tries_left == before.tries_left

    @rule(clean=st.booleans())
    def reboot(self, clean: bool) -> None:
        was_trial = self.phase is Phase.TRIAL
        if clean:
            self.store(lifecycle.stopped_cleanly(self.record))
        self.boot += 1
        self.store(lifecycle.booted(self.record, boot_id=str(self.boot)))
        if was_trial and not clean:
            assert (self.phase is Phase.REVERTING) == (self.starts_left == 0)
            self.starts_left -= 1
        elif was_trial:
            assert self.phase is Phase.TRIAL

    @precondition(lambda self: self.phase is Phase.TRIAL)
    @rule()
    def guardian_fails(self) -> None:
        self.store(lifecycle.faulted(self.record))

    @precondition(lambda self: self.phase is Phase.TRIAL)
    @rule()
    def keep(self) -> None:
        active = self.record.active
        self.store(lifecycle.keeping(self.record, reason="healthy", sentence="s"))
        assert self.record.active == active

    @precondition(lambda self: self.phase is Phase.TRIAL)
    @rule(quarantine=st.booleans())
    def revert(self, quarantine: bool) -> None:
        self.store(
            lifecycle.reverting(self.record, reason="bad", sentence="s", quarantine=quarantine)
        )

    @precondition(lambda self: self.at_rest and self.record.spare in self.record.slots)
    @rule()
    def go_back(self) -> None:
        wanted = self.record.slots[self.record.spare].release
        self.store(lifecycle.returning(self.record, self.next_attempt()))
        assert self.record.content is not None
        self.trusted = wanted

    @precondition(lambda self: self.phase in {Phase.KEEPING, Phase.REVERTING})
    @rule()
    def settle(self) -> None:
        kept = self.phase is Phase.KEEPING
        self.store(lifecycle.settled(self.record))
        if kept:
            assert self.record.content is not None
            self.trusted = self.record.content.release

    @rule()
    def lose_the_record(self) -> None:
        intact = dict(self.record.slots)
        self.store(lifecycle.rebuilt(intact, linked=self.record.active))
        self.trusted = self.record.content.release if self.record.content else None

    @invariant()
    def active_slot_holds_a_release(self) -> None:
        assert self.record.active is None or self.record.active in self.record.slots

    @invariant()
    def only_a_trial_and_its_end_have_an_attempt(self) -> None:
        assert (self.record.attempt is None) == self.at_rest

    @invariant()
    def a_trial_has_its_way_back(self) -> None:
        if self.phase is Phase.TRIAL:
            assert self.record.attempt is not None
            first = self.record.attempt.from_release is None
            assert first or self.record.spare in self.record.slots

    @invariant()
    def outside_a_trial_runs_what_is_trusted(self) -> None:
        if self.phase in {Phase.COMMITTED, Phase.REVERTING}:
            held = self.record.content
            assert (held.release if held else None) == self.trusted

    @invariant()
    def counters_are_never_negative_and_rest_at_zero(self) -> None:
        assert self.record.tries_left >= 0
        assert self.record.healthy_s >= 0
        if self.at_rest:
            assert (self.record.tries_left, self.record.healthy_s, self.record.faults) == (0, 0, 0)

    @invariant()
    def the_spare_slot_isnt_the_active_one(self) -> None:
        assert self.record.spare != self.record.active


TestMachine = Machine.TestCase


def test_a_record_lost_during_an_attempt_leaves_the_release_that_was_tried() -> None:
    slots: dict[SlotName, SlotContent] = {"a": content(1), "b": content(2)}
    lost = attempt(2, None)
    for linked in ("a", "b"):  # before or after the link was switched
        record = lifecycle.rebuilt(slots, linked=linked, tried="b", unsettled=lost)
        assert (record.phase, record.active) == (Phase.REVERTING, "a")
        assert record.attempt is not None
        assert record.attempt.release == content(2).release
        assert lifecycle.settled(record).slots == {"a": content(1)}
