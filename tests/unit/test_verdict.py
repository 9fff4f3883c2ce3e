"""What reverts a release, what only makes its trial longer, and what keeps it."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import Health
from agent.guardian import evidence, verdict
from agent.guardian.verdict import Baseline, Outcome, Policy, Reason, Root
from feed.manifest import HealthPolicy
from tests.support.trials import ENGINE, MIB, ROOT, Look, Trial, sample, samples

QUIET = Look()
SPINNING = Look(cpu=1.0, busy=0.6)
OTHERS_PIN = Look(cpu=0.05, demand=0.9, busy=1.0, foreign=0.97)
HOURS = 3600


def test_an_engine_that_spins_is_reverted_right_after_warmup_and_window() -> None:
    trial = Trial()
    found = trial.see_for(120, SPINNING)
    assert (found.outcome, found.reason, found.culprit) == (
        Outcome.REVERT,
        Reason.CPU_PINNED,
        ENGINE,
    )
    assert trial.elapsed <= 20 + 30 + 5
    assert "used 1.00 of a core for 30 s; before the update 0.06; limit 0.50" in found.sentence


def test_an_engine_that_spins_is_reverted_although_others_pin_every_core() -> None:
    trial = Trial()
    found = trial.see_for(120, Look(cpu=0.35, demand=1.0, busy=1.0, foreign=0.8))
    assert (found.outcome, found.reason) == (Outcome.REVERT, Reason.CPU_PINNED)
    assert trial.elapsed <= 20 + 30 + 5
    assert "asked for 1.00 on a full machine" in found.sentence


def test_others_that_pin_every_core_never_revert_a_healthy_engine() -> None:
    trial = Trial(before=replace(QUIET, probe=True))
    found = trial.see_for(3 * HOURS, replace(OTHERS_PIN, probe=False))
    assert (found.outcome, found.reason) == (Outcome.WAIT, Reason.MACHINE_PRESSURE)
    assert found.culprit == "cc1plus"
    assert trial.watching.healthy_s == 0
    assert trial.see_for(700, QUIET, probe=True).outcome is Outcome.KEEP


def test_a_machine_that_others_never_leave_idle_commits_in_four_times_the_time() -> None:
    trial = Trial(before=replace(QUIET, probe=True))
    calm = Look(cpu=0.03, demand=0.2, busy=1.0, foreign=0.97, probe=True)
    assert trial.see_for(20 + 4 * 600 - 10, calm).outcome is Outcome.WAIT
    assert trial.see_for(30, calm).outcome is Outcome.KEEP


def test_an_engine_that_asks_for_too_much_on_a_full_machine_earns_nothing() -> None:
    trial = Trial(before=replace(QUIET, probe=True))
    trial.see_for(HOURS, replace(OTHERS_PIN, probe=True))
    assert trial.watching.healthy_s == 0


def test_hyperthreads_that_slow_each_other_are_not_an_engine_that_spins() -> None:
    trial = Trial(before=Look(cpu=0.3))
    pressed = Look(cpu=0.42, demand=1.2, busy=1.0, foreign=0.7)
    assert trial.see_for(600, pressed).outcome is Outcome.WAIT


def test_nothing_but_a_crash_loop_reverts_during_the_warmup() -> None:
    trial = Trial(policy=Policy(warmup_s=100, window_s=5, probe_failures_allowed=0))
    looks = replace(SPINNING, rss=10_000 * MIB, probe=False)
    assert trial.see_for(100, looks).reason is Reason.WARMING_UP
    assert trial.watching.healthy_s == 0


def test_a_short_burst_does_not_revert() -> None:
    trial = Trial()
    trial.see_for(20, QUIET)
    assert trial.see_for(25, SPINNING).outcome is Outcome.WAIT
    assert trial.see_for(60, QUIET).outcome is Outcome.WAIT


def test_one_quiet_second_in_twenty_does_not_hide_an_engine_that_spins() -> None:
    trial = Trial()
    looks = [QUIET if second % 20 == 0 else SPINNING for second in range(120)]
    assert trial.see_each(looks).reason is Reason.CPU_PINNED


def test_an_engine_that_was_always_busy_is_not_pinned() -> None:
    trial = Trial(before=Look(cpu=0.9, cores=8))
    assert trial.see_for(HOURS, Look(cpu=1.1, cores=8)).outcome is Outcome.KEEP


def test_an_engine_that_used_the_whole_machine_is_not_judged_by_its_cpu() -> None:
    trial = Trial(before=Look(cpu=0.8, cores=1, busy=0.9, foreign=0.05))
    assert trial.see_for(HOURS, Look(cpu=0.9, cores=1, busy=0.9, foreign=0.05)).outcome is (
        Outcome.KEEP
    )
    gate = next(item for item in _gates(trial) if item.name is Reason.CPU_PINNED)
    assert gate.threshold is None
    assert "can't be judged" in gate.sentence


def test_the_only_core_of_a_small_machine_is_enough_to_be_pinned() -> None:
    trial = Trial(before=Look(cpu=0.25, cores=1))
    found = trial.see_for(120, Look(cpu=0.97, demand=0.99, cores=1, busy=1.0, foreign=0.03))
    assert found.reason is Reason.CPU_PINNED


def test_an_hour_of_idle_looks_counts_where_it_was_busier_than_the_last_seconds() -> None:
    idle = samples([replace(QUIET, cpu=0.8, seconds=60.0)] * 10)
    known = verdict.measure(samples([QUIET] * 30), idle)
    assert known.watch(ENGINE).cpu_mean == pytest.approx(0.8)


def test_memory_that_doubles_and_stays_reverts() -> None:
    trial = Trial(before=Look(rss=200 * MIB))
    found = trial.see_for(120, Look(rss=450 * MIB))
    assert (found.outcome, found.reason) == (Outcome.REVERT, Reason.MEMORY_GROWTH)
    assert "holds 450 MiB" in found.sentence
    assert "limit 400 MiB" in found.sentence


def test_memory_below_the_floor_is_never_growth() -> None:
    trial = Trial(before=Look(rss=10 * MIB))
    assert trial.see_for(900, Look(rss=250 * MIB)).outcome is Outcome.KEEP


def test_a_crash_loop_reverts_at_once_even_in_the_warmup() -> None:
    trial = Trial()
    found = trial.see_each(replace(QUIET, root=Root(200 + n, float(n))) for n in range(10))
    assert (found.outcome, found.reason) == (Outcome.REVERT, Reason.CRASH_LOOP)
    assert trial.elapsed == 2
    assert "ended unexpectedly 2 times" in found.sentence


def test_a_changed_pid_is_a_crash_even_if_every_probe_passes() -> None:
    trial = Trial(policy=Policy(crashes_allowed=0), before=replace(QUIET, probe=True))
    trial.see_for(30, probe=True)
    assert trial.see(replace(QUIET, probe=True, root=Root(101, 2.0))).reason is Reason.CRASH_LOOP


def test_a_reused_pid_with_another_start_time_is_a_crash() -> None:
    trial = Trial(policy=Policy(crashes_allowed=0))
    trial.see(QUIET)
    assert trial.see(replace(QUIET, root=Root(ROOT.pid, 2.0))).reason is Reason.CRASH_LOOP


def test_an_end_and_the_next_start_are_one_crash() -> None:
    trial = Trial()
    trial.see(QUIET)
    trial.see(replace(QUIET, root=None))
    trial.see(replace(QUIET, root=Root(101, 2.0)))
    assert trial.watching.watches[ENGINE].crashes == 1


def test_the_restart_that_activation_makes_is_not_a_crash() -> None:
    trial = Trial(policy=Policy(crashes_allowed=0), activation_done_at=None)
    trial.see(replace(QUIET, root=None))
    assert trial.see_for(30, replace(QUIET, root=Root(101, 2.0))).outcome is Outcome.WAIT
    trial.activation_done_at = trial.at
    assert trial.see(replace(QUIET, root=Root(101, 2.0))).outcome is Outcome.WAIT


def test_a_second_restart_during_activation_is_a_crash() -> None:
    trial = Trial(policy=Policy(crashes_allowed=0), activation_done_at=None)
    trial.see(replace(QUIET, root=Root(101, 2.0)))
    assert trial.see(replace(QUIET, root=Root(102, 3.0))).reason is Reason.CRASH_LOOP


def test_a_restart_seen_just_after_the_hooks_still_belongs_to_them() -> None:
    trial = Trial(policy=Policy(crashes_allowed=0), activation_done_at=5000.0)
    trial.see_for(2, QUIET)
    assert trial.see(replace(QUIET, root=Root(101, 2.0))).outcome is Outcome.WAIT


def test_an_engine_that_restarted_before_the_flip_is_not_held_against_the_release() -> None:
    restless = [replace(QUIET, root=Root(n, float(n))) for n in range(1, 31)]
    trial = Trial(baseline=verdict.measure(samples(restless)))
    found = trial.see_each(replace(QUIET, root=Root(100 + n, float(n))) for n in range(700))
    assert found.outcome is Outcome.KEEP


def test_an_engine_that_is_gone_reverts() -> None:
    trial = Trial()
    found = trial.see_for(120, Look(root=None))
    assert (found.outcome, found.reason) == (Outcome.REVERT, Reason.PROCESS_MISSING)
    assert trial.elapsed <= 20 + 30 + 5


def test_an_engine_that_is_gone_is_not_reported_as_a_failed_probe() -> None:
    trial = Trial(before=replace(QUIET, probe=True))
    assert trial.see_for(120, Look(root=None, probe=False)).reason is Reason.PROCESS_MISSING


def test_an_optional_engine_that_never_ran_is_not_missed_on_a_first_install() -> None:
    trial = Trial(baseline=Baseline())
    absent = Look(root=None, required=False, probed=True, probe=False)
    assert trial.see_for(HOURS, absent).outcome is Outcome.KEEP


def test_a_required_engine_that_never_ran_is_missed_on_a_first_install() -> None:
    assert Trial(baseline=Baseline()).see_for(90, Look(root=None)).reason is Reason.PROCESS_MISSING


def test_an_engine_that_was_stopped_before_the_flip_is_not_missed_after_it() -> None:
    trial = Trial(before=Look(root=None, probed=True))
    assert trial.see_for(HOURS, Look(root=None, probed=True)).outcome is Outcome.KEEP


def test_memory_is_not_judged_on_a_first_install() -> None:
    assert Trial(baseline=Baseline()).see_for(900, Look(rss=4096 * MIB)).outcome is Outcome.KEEP


def test_a_probe_that_keeps_failing_reverts() -> None:
    trial = Trial(before=replace(QUIET, probe=True))
    trial.see_for(25, probe=True)
    found = trial.see_for(10, probe=False)
    assert (found.outcome, found.reason) == (Outcome.REVERT, Reason.PROBE_FAILED)
    assert "failed its probe 4 times in a row (no answer); 3 allowed" in found.sentence


def test_failures_with_answers_in_between_do_not_revert() -> None:
    trial = Trial(before=replace(QUIET, probe=True))
    looks = (replace(QUIET, probe=second % 4 == 0) for second in range(600))
    assert trial.see_each(looks).outcome is Outcome.WAIT


def test_failures_while_others_pin_the_machine_are_not_counted_afterwards() -> None:
    trial = Trial(before=replace(QUIET, probe=True))
    trial.see_for(200, replace(OTHERS_PIN, probe=False))
    assert trial.see_for(3, probe=False).outcome is Outcome.WAIT
    assert trial.see(replace(QUIET, probe=False)).outcome is Outcome.REVERT


def test_a_probe_that_the_machine_cant_start_makes_the_trial_longer() -> None:
    """It is no answer, neither a bad one nor one that makes a second healthy."""
    trial = Trial(before=replace(QUIET, probe=True))
    trial.see_for(25, probe=True)
    trial.see_for(3, probe=False)
    healthy_s = trial.watching.healthy_s
    assert trial.see_for(HOURS, probe=False, starved=True).outcome is Outcome.WAIT
    assert trial.watching.healthy_s == healthy_s
    assert trial.see(replace(QUIET, probe=False)).reason is Reason.PROBE_FAILED


def test_a_probe_that_failed_before_the_flip_is_not_held_against_the_release() -> None:
    trial = Trial(before=replace(QUIET, probe=False))
    assert trial.see_for(900, probe=False).outcome is Outcome.KEEP
    gate = next(item for item in _gates(trial) if item.name is Reason.PROBE_FAILED)
    assert not gate.holding
    assert "it failed before the update too" in gate.sentence


def test_seconds_before_the_first_answer_are_not_healthy() -> None:
    trial = Trial()
    assert trial.see_for(900, probed=True).reason is Reason.PROBE_FAILED
    assert trial.watching.healthy_s == 0


def test_a_source_that_is_lost_makes_the_trial_longer_and_never_reverts() -> None:
    trial = Trial(before=replace(QUIET, source=True))
    found = trial.see_for(2 * HOURS, source=False)
    assert (found.outcome, found.reason) == (Outcome.WAIT, Reason.SOURCE_UNREACHABLE)
    assert trial.see_for(700, source=True).outcome is Outcome.KEEP


def test_a_source_that_was_lost_before_does_not_matter() -> None:
    trial = Trial(before=replace(QUIET, source=False))
    assert trial.see_for(700, source=False).outcome is Outcome.KEEP


def test_a_quiet_trial_is_kept_after_warmup_and_probation() -> None:
    trial = Trial()
    found = trial.see_for(HOURS)
    assert (found.outcome, found.reason) == (Outcome.KEEP, Reason.HEALTHY)
    assert 620 <= trial.elapsed <= 623
    assert verdict.progress(trial.watching, trial.policy) == (600.0, 600.0)


def test_sleep_adds_no_healthy_second() -> None:
    trial = Trial()
    trial.see_for(21)
    before = trial.watching.healthy_s
    for _ in range(100):
        trial.see(replace(QUIET, suspended=True, seconds=8 * HOURS))
    assert trial.watching.healthy_s == before


def test_a_guardian_that_was_not_run_saw_nothing_healthy() -> None:
    trial = Trial()
    trial.see_for(21)
    before = trial.watching.healthy_s
    trial.see(replace(QUIET, seconds=700.0))
    assert trial.watching.healthy_s == before


def test_a_starved_guardian_still_reverts_an_engine_that_spins() -> None:
    found = Trial().see_for(300, Look(cpu=1.0, busy=1.0, foreign=0.3, seconds=15.0))
    assert found.reason is Reason.CPU_PINNED


def test_one_long_gap_alone_reverts_nothing() -> None:
    trial = Trial()
    trial.see_for(21)
    assert trial.see(replace(SPINNING, seconds=3000.0)).outcome is Outcome.WAIT


def test_a_trial_past_its_time_is_late_and_waits() -> None:
    trial = Trial(policy=Policy(probation_max_s=300))
    found = trial.see_for(400, OTHERS_PIN)
    assert (found.outcome, found.reason) == (Outcome.WAIT, Reason.PROBATION_OVERDUE)
    assert "0 of 600 healthy seconds in" in found.sentence
    assert "other programs 97%" in found.sentence


@pytest.mark.parametrize(
    ("warmup_s", "said"), [(20.0, "warm-up: 0 of 20 s"), (0.5, "warm-up: 0.0 of 0.5 s")]
)
def test_a_short_warmup_is_told_with_its_tenths(warmup_s: float, said: str) -> None:
    trial = Trial(policy=Policy(warmup_s=warmup_s))
    assert said in [gate.sentence for gate in _gates(trial)]


def test_a_restarted_guardian_goes_on_where_the_last_one_stopped() -> None:
    trial = Trial(policy=Policy(crashes_allowed=0))
    trial.see_for(300)
    stored = msgspec.json.encode(trial.watching.carried)
    carried = msgspec.json.decode(stored, type=verdict.Carried)
    trial.watching = verdict.begin(trial.known, carried)
    assert trial.see(QUIET).outcome is Outcome.WAIT
    assert trial.watching.healthy_s == carried.healthy_s == pytest.approx(280, abs=2)
    assert trial.see(replace(QUIET, root=Root(101, 2.0))).reason is Reason.CRASH_LOOP


def test_an_engine_that_was_down_when_the_guardian_restarted_is_counted_once() -> None:
    trial = Trial()
    trial.see(QUIET)
    trial.see(replace(QUIET, root=None))
    trial.watching = verdict.begin(trial.known, trial.watching.carried)
    # begin knows the engine of the baseline; it ended in the part that was carried
    trial.see(replace(QUIET, root=Root(101, 2.0)))
    assert trial.watching.watches[ENGINE].crashes == 1


def test_a_reboot_is_no_crash_and_needs_the_warmup_again() -> None:
    trial = Trial(policy=Policy(crashes_allowed=0))
    trial.see_for(300)
    trial.watching = verdict.begin(trial.known, trial.watching.carried, rebooted=True)
    found = trial.see(replace(QUIET, root=Root(7, 3.0)))
    assert (found.outcome, found.reason) == (Outcome.WAIT, Reason.WARMING_UP)
    assert trial.watching.healthy_s > 200


def test_a_baseline_survives_its_way_through_a_file() -> None:
    known = verdict.measure(samples([replace(QUIET, probe=True, source=True)] * 300))
    stored = msgspec.json.encode(known)
    assert msgspec.json.decode(stored, type=Baseline) == known
    assert len(stored) < 64 << 10


def test_an_administrator_overrides_a_release_and_a_release_the_defaults() -> None:
    release = HealthPolicy(warmup_s=1.0, window_s=2.0)
    admin = Health(window_s=3.0, crashes_allowed=0).as_policy()
    found = verdict.resolve(release, admin)
    assert (found.warmup_s, found.window_s, found.crashes_allowed) == (1.0, 3.0, 0)
    assert found.probation_s == verdict.DEFAULTS.probation_s


def test_gates_name_what_holds_with_its_figure_and_threshold() -> None:
    trial = Trial()
    trial.see_for(25, SPINNING)
    holding = {item.name: item for item in _gates(trial) if item.holding}
    assert set(holding) == {Reason.CPU_PINNED, Reason.ON_PROBATION}
    assert (holding[Reason.CPU_PINNED].measured, holding[Reason.CPU_PINNED].threshold) == (1.0, 0.5)


def test_every_gate_has_a_sentence_before_the_first_look() -> None:
    gates = verdict.gates(verdict.begin(Baseline()), Policy(), Baseline())
    assert all(item.sentence for item in gates)
    assert verdict.judge(verdict.begin(Baseline()), Policy(), Baseline()).outcome is Outcome.WAIT


def test_evidence_is_json_and_bounded_whatever_the_length_of_the_trial() -> None:
    trial = Trial(policy=Policy(probation_s=1e6, window_s=3000))
    trial.see_for(2500, replace(QUIET, probe=True))
    document = evidence.build(
        trial.known,
        trial.watching,
        trial.policy,
        verdict.judge(trial.watching, trial.policy, trial.known),
    )
    text = json.dumps(document)
    assert len(document["after"]["samples"]) <= 120
    assert len(text) < 128 << 10
    assert document["after"]["samples"][-1]["at_s"] == trial.at
    assert document["after"]["samples"][0]["at_s"] == 5001
    assert document["thresholds"]["window_s"] == 3000
    assert document["after"]["top_processes"][1]["name"] == "cc1plus"


def test_what_is_kept_of_a_trial_does_not_grow_with_its_window() -> None:
    trial = Trial(policy=Policy(window_s=86400, probation_s=1e6))
    trial.see_for(5000)
    assert len(trial.watching.window) < 130


def _gates(trial: Trial) -> tuple[verdict.Gate, ...]:
    return verdict.gates(trial.watching, trial.policy, trial.known)


looks = st.builds(
    Look,
    cpu=st.floats(0, 4),
    demand=st.floats(0, 8),
    rss=st.integers(0, 1 << 34),
    root=st.sampled_from([None, ROOT, ROOT, ROOT, Root(101, 2.0)]),
    probe=st.sampled_from([None, True, False]),
    busy=st.floats(0, 1),
    foreign=st.floats(0, 1),
    seconds=st.floats(0, 40),
    suspended=st.booleans(),
    source=st.sampled_from([None, True, False]),
    required=st.booleans(),
)
trials = st.lists(looks, max_size=60)


@given(trials)
def test_healthy_seconds_never_exceed_observed_ones_and_never_shrink(seen: list[Look]) -> None:
    trial = Trial(policy=Policy(warmup_s=3, window_s=5, probation_s=1e6))
    healthy = 0.0
    for look in seen:
        trial.see(look)
        assert healthy <= trial.watching.healthy_s <= trial.watching.observed_s + 1e-6
        assert trial.watching.observed_s <= trial.elapsed + 1e-6
        healthy = trial.watching.healthy_s


@given(trials)
def test_nothing_is_kept_before_its_probation_nor_judged_in_the_warmup(seen: list[Look]) -> None:
    trial = Trial(policy=Policy(warmup_s=20, window_s=5, probation_s=30))
    for look in seen:
        found = trial.see(look)
        if trial.elapsed < 20 and found.outcome is Outcome.REVERT:
            assert found.reason is Reason.CRASH_LOOP
        if found.outcome is Outcome.KEEP:
            assert trial.watching.healthy_s >= 30
            assert trial.elapsed >= 50


pressed_looks = st.builds(
    Look,
    cpu=st.floats(0, 0.06),
    demand=st.floats(0, 8),
    probe=st.sampled_from([None, True, False]),
    busy=st.floats(0.95, 1),
    foreign=st.floats(0.25, 1),
    seconds=st.floats(0.5, 40),
    suspended=st.booleans(),
    source=st.sampled_from([None, True, False]),
)


@given(st.lists(pressed_looks, max_size=120))
def test_pressure_from_outside_never_reverts_an_engine_that_behaves(seen: list[Look]) -> None:
    trial = Trial(
        policy=Policy(warmup_s=2, window_s=5, probation_s=10), before=Look(probe=True, source=True)
    )
    for look in seen:
        assert trial.see(look).outcome is not Outcome.REVERT
    assert trial.watching.healthy_s <= trial.watching.observed_s / 4


@given(trials, st.floats(-1e9, 1e9))
def test_only_differences_of_the_monotonic_clock_matter(seen: list[Look], shift: float) -> None:
    rounded = [replace(look, seconds=float(round(look.seconds))) for look in seen]
    policy = Policy(warmup_s=3, window_s=5, probation_s=20)
    here, there = (Trial(policy=policy, activation_done_at=None, at=at) for at in (0.0, 0.0))
    there.at = float(round(shift))
    for look in rounded:
        a, b = here.see(look), there.see(look)
        assert (a.outcome, a.reason, a.numbers) == (b.outcome, b.reason, b.numbers)


@given(trials)
def test_a_sample_that_comes_again_or_late_changes_nothing(seen: list[Look]) -> None:
    policy = Policy(warmup_s=3, window_s=5)
    trial = Trial(policy=policy)
    for look in seen:
        earlier = trial.watching.last
        trial.see(look)
        for stale in (trial.watching.last, earlier):
            if stale:
                again = verdict.observe(
                    trial.watching, stale, policy, trial.known, activation_done_at=0.0
                )
                assert again == trial.watching


@given(trials)
def test_judging_twice_says_the_same_and_always_with_a_sentence(seen: list[Look]) -> None:
    trial = Trial(policy=Policy(warmup_s=3, window_s=5, probation_s=20))
    for look in seen:
        found = trial.see(look)
        assert found == verdict.judge(trial.watching, trial.policy, trial.known)
        assert found.sentence
        assert all(gate.sentence for gate in _gates(trial))


@given(trials)
def test_what_is_carried_never_loses_healthy_seconds_or_crashes(seen: list[Look]) -> None:
    trial = Trial(policy=Policy(warmup_s=3, window_s=5))
    for number, look in enumerate(seen):
        trial.see(look)
        carried = trial.watching.carried
        if number % 7 == 0:
            trial.watching = verdict.begin(trial.known, carried, rebooted=number % 2 == 0)
        assert trial.watching.healthy_s == carried.healthy_s
        assert trial.watching.carried.crashes == carried.crashes


def test_a_sample_knows_nothing_of_wall_time() -> None:
    fields = {item.name for item in msgspec.structs.fields(type(sample(QUIET, 1.0)))}
    assert not {name for name in fields if "time" in name or "unix" in name or "date" in name}


def test_a_window_of_no_length_judges_the_last_look() -> None:
    """A release may have been signed with it; it must not take the guardian down."""
    trial = Trial(policy=Policy(warmup_s=0, window_s=0))
    assert trial.see_for(5, QUIET).outcome is Outcome.WAIT
    assert trial.see_for(5, SPINNING).outcome is Outcome.REVERT


def counted(look: Look, restarts: int | None, at: float) -> verdict.Sample:
    """A look at a unit whose service manager says how often it started it again."""
    seen = sample(look, at)
    (process,) = seen.processes
    process = msgspec.structs.replace(process, restarts=restarts)
    return msgspec.structs.replace(seen, processes=(process,))


def crashes(*figures: int | None, done_at: float | None = 0.0, roots: tuple[int, ...] = ()) -> int:
    watching = verdict.begin(Baseline())
    for number, figure in enumerate(figures):
        root = Root(roots[number], 1.0) if roots else ROOT
        watching = verdict.observe(
            watching,
            counted(Look(root=root), figure, 1000.0 + number),
            Policy(),
            Baseline(),
            activation_done_at=done_at,
        )
    return watching.watches[ENGINE].crashes


def test_restarts_that_no_look_has_seen_are_crashes() -> None:
    assert crashes(2, 2, 7) == 5


def test_an_end_that_was_seen_and_its_restart_are_one_crash() -> None:
    assert crashes(0, 1, 2, roots=(1, 2, 3)) == 2


def test_the_restart_of_the_activation_is_free_whoever_counts_it() -> None:
    assert crashes(0, 1, done_at=None) == 0
    assert crashes(0, 1, 2, done_at=None, roots=(1, 2, 3)) == 1


def test_an_administrators_restart_sets_the_count_to_zero_and_is_no_crash_by_it() -> None:
    assert crashes(5, 0, 0) == 0
    assert crashes(5, None, 5) == 0
