"""A new agent program is judged by what the prior one does in the same situation."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.guardian import comparison, conditions, verdict
from agent.guardian.comparison import Answer, Reply
from agent.guardian.gates import Reason
from agent.guardian.samples import ProgramSample
from agent.guardian.verdict import Outcome, Policy
from tests.support.trials import Look, Trial, sample, samples

GOOD = Reply(Answer.GOOD)
BAD = st.sampled_from([Reply(item, "why") for item in Answer if item is not Answer.GOOD])
FRESH = ProgramSample(question="fetcher", version="0.2.0")
POLICY = Policy(warmup_s=0.0, window_s=5.0, probation_s=10.0)


def after(rounds: list[tuple[Reply, Reply | None]]) -> ProgramSample:
    known = FRESH
    for new, control in rounds:
        known = comparison.after(known, new, control)
    return known


@given(st.lists(st.tuples(BAD, BAD)))
def test_what_fails_for_both_never_counts(rounds: list[tuple[Reply, Reply]]) -> None:
    known = after(list(rounds))
    assert known.losses == 0
    assert not conditions.is_program_lost(known)
    assert not known.proven


@given(st.lists(st.tuples(st.one_of(BAD, st.just(GOOD)), st.one_of(BAD, st.just(GOOD)))))
def test_one_success_clears_the_account(rounds: list[tuple[Reply, Reply]]) -> None:
    known = after([*rounds, (GOOD, None)])
    assert known.proven
    assert known.losses == 0


@given(st.lists(BAD, min_size=conditions.PROGRAM_LOSSES_ALLOWED + 1))
def test_failing_alone_often_enough_is_a_loss(replies: list[Reply]) -> None:
    assert conditions.is_program_lost(after([(reply, GOOD) for reply in replies]))


@given(st.lists(BAD, max_size=conditions.PROGRAM_LOSSES_ALLOWED))
def test_failing_alone_once_or_twice_only_waits(replies: list[Reply]) -> None:
    known = after([(reply, GOOD) for reply in replies])
    assert not conditions.is_program_lost(known)
    assert not known.proven


def test_a_network_that_goes_away_in_between_forgets_what_was_counted() -> None:
    refused = Reply(Answer.REFUSED, "no route")
    known = after([(refused, GOOD), (refused, GOOD), (refused, refused), (refused, GOOD)])
    assert known.losses == 1


def test_a_machine_that_cant_start_processes_asks_nobody_else() -> None:
    assert not comparison.wants_control(Reply(Answer.NOT_ASKED, "too many processes"))
    assert not comparison.wants_control(GOOD)
    assert comparison.wants_control(Reply(Answer.SILENT))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer.ENDED, Reason.PROGRAM_NOT_STARTED),
        (Answer.SILENT, Reason.PROGRAM_SILENT),
        (Answer.REFUSED, Reason.PROGRAM_CUT_OFF),
    ],
)
@pytest.mark.parametrize("foreign", [0.0, 0.9])
def test_a_lost_program_reverts_with_its_own_reason_even_on_a_full_machine(
    answer: Answer, reason: Reason, foreign: float
) -> None:
    found = judged(after([(Reply(answer, "status 3"), GOOD)] * 3), Look(busy=1.0, foreign=foreign))
    assert (found.outcome, found.reason, found.culprit) == (Outcome.REVERT, reason, "fetcher")
    assert "status 3" in found.sentence
    assert found.numbers == {"losses": 3.0, "losses_allowed": 2.0}


def judged(program: ProgramSample, look: Look) -> verdict.Verdict:
    baseline = verdict.measure(samples([Look()] * 5))
    seen = msgspec.structs.replace(sample(look, 5000.0), program=(program,))
    watching = verdict.observe(
        verdict.begin(baseline), seen, POLICY, baseline, activation_done_at=0.0
    )
    return verdict.judge(watching, POLICY, baseline)


def test_no_second_is_healthy_before_a_new_program_has_answered() -> None:
    trial = Trial(policy=POLICY)

    def see(program: ProgramSample) -> verdict.Verdict:
        trial.at += 1
        seen = msgspec.structs.replace(sample(Look(), trial.at), program=(program,))
        trial.watching = verdict.observe(
            trial.watching, seen, POLICY, trial.known, activation_done_at=0.0
        )
        return verdict.judge(trial.watching, POLICY, trial.known)

    for _ in range(30):
        found = see(FRESH)
    assert trial.watching.healthy_s == 0
    assert (found.outcome, found.reason) == (Outcome.WAIT, Reason.PROGRAM_UNPROVEN)
    proven = after([(GOOD, None)])
    for _ in range(12):
        found = see(proven)
    assert found.outcome is Outcome.KEEP


def test_a_trial_of_other_components_has_no_such_gate() -> None:
    trial = Trial(policy=POLICY)
    trial.see(Look())
    names = [gate.name for gate in verdict.gates(trial.watching, POLICY, trial.known)]
    assert Reason.PROGRAM_UNPROVEN not in names
