"""Of two bad slots the less bad one is held, by what is recorded of each."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import LifecycleError
from agent.guardian import lesser, lifecycle
from agent.guardian.gates import Reason
from agent.guardian.lesser import Findings
from agent.slots import record as records
from agent.slots.record import Attempt, BootRecord, Held, Phase, SlotContent

A = SlotContent(release="r171", digest="1" * 64, seal="2" * 64)
B = SlotContent(release="r173", digest="3" * 64, seal="4" * 64)
ATTEMPT = Attempt(
    id="1", release="r173", from_release="r171", changed={}, trigger="t", flipped_at=5.0
)
TRIAL = BootRecord(phase=Phase.TRIAL, active="b", slots={"a": A, "b": B}, attempt=ATTEMPT)
HELD = Held(reason="cpu_pinned", sentence="it burned a core", since=7.0)

CODES = ["", "tries_used_up", "guardian_faults", "activation_failed", *lesser.FILES, *Reason]
FINDINGS = st.builds(
    Findings,
    sealed=st.booleans(),
    damaged=st.lists(st.sampled_from(["engine", "pattern", "policy"]), unique=True).map(tuple),
    failed=st.sampled_from(CODES),
)
WORSE_AND_WORSE = [
    Findings(),
    Findings(failed="program_cut_off"),
    Findings(failed="cpu_pinned"),
    Findings(failed="crash_loop"),
    Findings(damaged=("pattern",)),
    Findings(damaged=("pattern", "engine"), failed="cpu_pinned"),
    Findings(failed="tries_used_up"),
    Findings(sealed=False),
]


@given(FINDINGS, FINDINGS)
def test_never_both_are_less_bad_than_each_other(one: Findings, other: Findings) -> None:
    assert not (lesser.is_less_bad(one, than=other) and lesser.is_less_bad(other, than=one))


@given(FINDINGS)
def test_nothing_is_less_bad_than_a_slot_without_a_record(found: Findings) -> None:
    assert not lesser.is_less_bad(found, than=Findings())
    assert lesser.is_bad(found) == lesser.is_less_bad(Findings(), than=found)


@given(FINDINGS, FINDINGS, FINDINGS)
def test_the_order_is_the_same_whichever_way_round(a: Findings, b: Findings, c: Findings) -> None:
    if lesser.is_less_bad(a, than=b) and lesser.is_less_bad(b, than=c):
        assert lesser.is_less_bad(a, than=c)


@given(FINDINGS)
def test_more_evidence_never_makes_a_slot_better(found: Findings) -> None:
    unsealed = msgspec.structs.replace(found, sealed=False)
    damaged = msgspec.structs.replace(found, damaged=(*found.damaged, "one more"))
    assert not lesser.is_less_bad(unsealed, than=found)
    assert not lesser.is_less_bad(damaged, than=found)


def test_a_signed_release_that_hurts_is_less_bad_than_altered_files() -> None:
    for better, worse in itertools.pairwise(WORSE_AND_WORSE):
        assert lesser.is_less_bad(better, than=worse)


def test_a_slot_that_was_held_for_its_files_and_is_whole_again_is_not_bad() -> None:
    assert not lesser.is_bad(Findings(failed="slot_damaged"))
    assert not lesser.is_bad(Findings(failed="repair_failed"))


def test_a_held_release_stays_active_until_something_is_committed() -> None:
    kept = lifecycle.holding(TRIAL, held=HELD, evidence="e.json")
    assert (kept.phase, kept.active, kept.held) == (Phase.KEEPING, "b", HELD)
    assert kept.attempt is not None
    assert (kept.attempt.held, kept.attempt.evidence) == (True, "e.json")
    settled = lifecycle.settled(kept)
    assert (settled.phase, settled.active, settled.held) == (Phase.COMMITTED, "b", HELD)
    again = lifecycle.flipped(settled, ATTEMPT, tries=1, boot_id="1")
    back = lifecycle.settled(
        lifecycle.reverting(again, reason="cpu_pinned", sentence="s", quarantine=True)
    )
    assert (back.active, back.held) == ("b", HELD)
    good = lifecycle.settled(lifecycle.keeping(again, reason="healthy", sentence="s"))
    assert (good.active, good.held) == ("a", None)


def kept_after(reason: str) -> BootRecord:
    """r171 was held for `reason`, then r173 passed its trial; nothing is settled yet."""
    known = Held(reason=reason, sentence="s", since=7.0)
    return lifecycle.keeping(lifecycle.with_held(TRIAL, known), reason="healthy", sentence="s")


@pytest.mark.parametrize("code", sorted({*lesser.DOWN, *Reason}))
def test_what_failed_its_trial_is_no_way_back_from_what_was_kept_after_it(code: str) -> None:
    kept = kept_after(code)
    assert lifecycle.given_up(kept) == ("a",)
    settled = lifecycle.settled(kept)
    assert (settled.active, settled.slots, settled.held) == ("b", {"b": B}, None)


@pytest.mark.parametrize("code", sorted(lesser.FILES))
def test_what_was_held_for_its_files_stays_a_way_back_that_can_be_mended(code: str) -> None:
    kept = kept_after(code)
    assert lifecycle.given_up(kept) == ()
    assert set(lifecycle.settled(kept).slots) == {"a", "b"}


def test_a_repair_that_failed_is_remembered_even_when_the_machine_went_down() -> None:
    repair = msgspec.structs.replace(ATTEMPT, cause="repair", quarantine=False)
    trial = msgspec.structs.replace(TRIAL, attempt=repair, boot_id="1")
    fallen = lifecycle.booted(trial, boot_id="2")
    assert fallen.held is not None
    assert fallen.held.reason == "repair_failed"
    assert lifecycle.settled(fallen).held == fallen.held
    plain = lifecycle.booted(msgspec.structs.replace(TRIAL, boot_id="1"), boot_id="2")
    assert plain.held is None


def test_only_a_trial_can_be_held() -> None:
    with pytest.raises(LifecycleError):
        lifecycle.holding(BootRecord(active="a", slots={"a": A}), held=HELD)


def test_only_a_revert_that_leaves_a_known_slot_is_turned_back() -> None:
    fallen = lifecycle.reverting(TRIAL, reason="cpu_pinned", sentence="s", quarantine=True)
    kept = lifecycle.turned_back(fallen, held=HELD)
    assert (kept.phase, kept.active, kept.held) == (Phase.KEEPING, "b", HELD)
    for record in (
        TRIAL,
        msgspec.structs.replace(fallen, active=None),
        msgspec.structs.replace(fallen, slots={"a": A}),
    ):
        with pytest.raises(LifecycleError):
            lifecycle.turned_back(record, held=HELD)


def test_what_is_held_survives_in_the_boot_record() -> None:
    record = lifecycle.with_held(BootRecord(active="a", slots={"a": A}), HELD)
    assert records.parse(records.serialize(record), where="test") == record
