"""Decide whether a freshly flipped slot is kept or reverted.

Pure: what was seen and the thresholds come in, a Verdict goes out. Looking is
in health, acting on the verdict in main. The guardian needs only this module:
it passes on the values it is made of.

 * Before the warm-up has passed only a crash loop reverts, and an agent program
   that fails where the prior one doesn't.
 * A figure reverts when it was bad for nine tenths of a whole window.
 * Only what the update can have caused reverts: other programs' load, a lost
   source and a sleeping machine make the trial longer.
 * Silence is never healthy time.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from agent.guardian import conditions
from agent.guardian.baseline import IDLE_SAMPLES_MAX, SAMPLES_MAX, Baseline, measure
from agent.guardian.comparison import Answer
from agent.guardian.gates import Gate, Reason, before_text, gates, mebibytes, times, top_foreign
from agent.guardian.policy import DEFAULTS, Policy, resolve
from agent.guardian.samples import (
    MachineSample,
    ProbeResult,
    ProcessSample,
    ProgramSample,
    Root,
    Sample,
    TopProcess,
)
from agent.guardian.watching import Bucket, Carried, Watching, any_failing, begin, observe

__all__ = [
    "DEFAULTS",
    "IDLE_SAMPLES_MAX",
    "SAMPLES_MAX",
    "Baseline",
    "Carried",
    "Gate",
    "MachineSample",
    "Outcome",
    "Policy",
    "ProbeResult",
    "ProcessSample",
    "ProgramSample",
    "Reason",
    "Root",
    "Sample",
    "TopProcess",
    "Verdict",
    "Watching",
    "begin",
    "gates",
    "judge",
    "measure",
    "observe",
    "progress",
    "resolve",
]

_PROGRAM_REASONS = {
    Answer.ENDED: Reason.PROGRAM_NOT_STARTED,
    Answer.SILENT: Reason.PROGRAM_SILENT,
    Answer.REFUSED: Reason.PROGRAM_CUT_OFF,
}

SUSTAINED = 0.9  # of the window; one quiet sample in ten doesn't clear a pinned engine


class Outcome(StrEnum):
    """What the guardian does next."""

    WAIT = "wait"
    KEEP = "keep"
    REVERT = "revert"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """An outcome with its reason.

    sentence is for people and holds the numbers, which `numbers` repeats for
    programs, with units in their names. culprit is the watch, or the program
    that keeps the machine busy; "" where there is none.
    """

    outcome: Outcome
    reason: Reason
    sentence: str
    numbers: dict[str, float] = {}
    culprit: str = ""


def judge(watching: Watching, policy: Policy, baseline: Baseline) -> Verdict:
    """The verdict on a trial as seen so far."""
    if found := _crash_loop(watching, policy, baseline) or _program(watching):
        return found
    if watching.warm_s >= policy.warmup_s:
        if found := _sustained(watching, policy, baseline) or _probe(watching, policy, baseline):
            return found
        if _is_passed(watching, policy, baseline):
            return _keep(watching, policy)
    return _wait(watching, policy, baseline)


def progress(watching: Watching, policy: Policy) -> tuple[float, float]:
    """Healthy seconds observed, and needed. What holds them: `gates`."""
    return (min(watching.healthy_s, policy.probation_s), policy.probation_s)


def _crash_loop(watching: Watching, policy: Policy, baseline: Baseline) -> Verdict | None:
    for name, state in watching.watches.items():
        judged = conditions.are_crashes_judged(baseline.watch(name))
        if judged and state.crashes > policy.crashes_allowed:
            return Verdict(
                outcome=Outcome.REVERT,
                reason=Reason.CRASH_LOOP,
                sentence=f"{name} ended unexpectedly {times(state.crashes)} in "
                f"{watching.observed_s:.0f} s since the update; {policy.crashes_allowed} allowed",
                numbers={
                    "crashes": float(state.crashes),
                    "crashes_allowed": float(policy.crashes_allowed),
                    "observed_s": watching.observed_s,
                },
                culprit=name,
            )
    return None


def _program(watching: Watching) -> Verdict | None:
    """On a full machine too: what the prior program did at the same time tells more."""
    for item in watching.last.program if watching.last else ():
        if conditions.is_program_lost(item):
            return Verdict(
                outcome=Outcome.REVERT,
                reason=_PROGRAM_REASONS[Answer(item.how)],
                sentence=f"the new agent program {item.version}, asked as {item.question}, failed "
                f"{times(item.losses)} in a row where the prior one didn't: {item.detail}",
                numbers={
                    "losses": float(item.losses),
                    "losses_allowed": float(conditions.PROGRAM_LOSSES_ALLOWED),
                },
                culprit=item.question,
            )
    return None


def _sustained(watching: Watching, policy: Policy, baseline: Baseline) -> Verdict | None:
    window = sum(watching.window, start=Bucket())
    if window.observed_s < policy.window_s or not watching.window:
        return None
    enough_s = SUSTAINED * window.observed_s
    for name in watching.watches:
        tally = window.tally(name)
        if tally.missing_s >= enough_s:
            return _missing(name, tally.missing_s)
        if tally.over_cpu_s >= enough_s:
            return _pinned(name, window, watching, policy, baseline)
        if tally.over_rss_s >= enough_s:
            return _grown(name, window, watching, policy, baseline)
    return None


def _missing(name: str, missing_s: float) -> Verdict:
    return Verdict(
        outcome=Outcome.REVERT,
        reason=Reason.PROCESS_MISSING,
        sentence=f"{name} hasn't been running for {missing_s:.0f} s since the update",
        numbers={"missing_s": missing_s},
        culprit=name,
    )


def _pinned(
    name: str, window: Bucket, watching: Watching, policy: Policy, baseline: Baseline
) -> Verdict:
    tally, before = window.tally(name), baseline.watch(name)
    limit = conditions.limits(policy, before, _cores(watching)).cpu_share or 0.0
    used = tally.cpu_core_s / window.observed_s
    asked = tally.demand_core_s / window.observed_s
    crowded = f" and asked for {asked:.2f} on a full machine" if used <= limit else ""
    return Verdict(
        outcome=Outcome.REVERT,
        reason=Reason.CPU_PINNED,
        sentence=f"{name} used {used:.2f} of a core{crowded} for {window.observed_s:.0f} s; "
        f"{before_text(before)}; limit {limit:.2f}",
        numbers={
            "cpu_share": used,
            "cpu_demand": asked,
            "cpu_share_before": before.cpu_mean or 0.0,
            "cpu_limit": limit,
            "window_s": window.observed_s,
        },
        culprit=name,
    )


def _grown(
    name: str, window: Bucket, watching: Watching, policy: Policy, baseline: Baseline
) -> Verdict:
    before = baseline.watch(name)
    limit = conditions.limits(policy, before, _cores(watching)).rss_bytes or 0
    held = watching.watches[name].now.rss_bytes
    return Verdict(
        outcome=Outcome.REVERT,
        reason=Reason.MEMORY_GROWTH,
        sentence=f"{name} holds {mebibytes(held)}, too much for {window.observed_s:.0f} s; "
        f"before the update {mebibytes(before.rss_bytes or 0)}; limit {mebibytes(limit)}",
        numbers={
            "rss_bytes": float(held),
            "rss_bytes_before": float(before.rss_bytes or 0),
            "rss_bytes_limit": float(limit),
            "window_s": window.observed_s,
        },
        culprit=name,
    )


def _cores(watching: Watching) -> int:
    return watching.last.machine.cpu_count if watching.last else 1


def _probe(watching: Watching, policy: Policy, baseline: Baseline) -> Verdict | None:
    """A process that is gone is process_missing's to judge, not its probe's."""
    if watching.last is None or conditions.is_foreign_pressure(watching.last):
        return None
    for name, state in watching.watches.items():
        judged = state.now.alive and conditions.is_probe_judged(state.now, baseline.watch(name))
        if judged and state.probe_failures > policy.probe_failures_allowed:
            detail = f" ({state.probe.detail})" if state.probe and state.probe.detail else ""
            return Verdict(
                outcome=Outcome.REVERT,
                reason=Reason.PROBE_FAILED,
                sentence=f"{name} failed its probe {times(state.probe_failures)} in a row{detail}; "
                f"{policy.probe_failures_allowed} allowed",
                numbers={
                    "failures": float(state.probe_failures),
                    "failures_allowed": float(policy.probe_failures_allowed),
                },
                culprit=name,
            )
    return None


def _is_passed(watching: Watching, policy: Policy, baseline: Baseline) -> bool:
    enough = watching.healthy_s >= policy.probation_s
    return enough and not any_failing(watching, policy, baseline)


def _keep(watching: Watching, policy: Policy) -> Verdict:
    return Verdict(
        outcome=Outcome.KEEP,
        reason=Reason.HEALTHY,
        sentence=f"{watching.healthy_s:.0f} healthy seconds observed, "
        f"{policy.probation_s:.0f} needed",
        numbers={"healthy_s": watching.healthy_s, "probation_s": policy.probation_s},
    )


def _wait(watching: Watching, policy: Policy, baseline: Baseline) -> Verdict:
    warming = watching.warm_s < policy.warmup_s
    first = _first_holding(watching, policy, baseline)
    numbers = {
        "healthy_s": watching.healthy_s,
        "probation_s": policy.probation_s,
        "observed_s": watching.observed_s,
    }
    overdue = not warming and watching.observed_s >= policy.probation_max_s
    why = first.sentence if first else "waiting for the next look"
    if overdue:
        why = (
            f"{watching.healthy_s:.0f} of {policy.probation_s:.0f} healthy seconds in "
            f"{watching.observed_s:.0f} s, expected within {policy.probation_max_s:.0f}; {why}"
        )
    reason = first.name if first else Reason.ON_PROBATION
    return Verdict(
        outcome=Outcome.WAIT,
        reason=Reason.PROBATION_OVERDUE if overdue else reason,
        sentence=why,
        numbers=numbers,
        culprit=_culprit(first, watching),
    )


def _first_holding(watching: Watching, policy: Policy, baseline: Baseline) -> Gate | None:
    """What explains the others comes first: a probe times out because the machine is full."""
    holding = [gate for gate in gates(watching, policy, baseline) if gate.holding]
    explaining = (Reason.WARMING_UP, Reason.MACHINE_PRESSURE)
    return min(
        holding,
        key=lambda gate: (
            explaining.index(gate.name) if gate.name in explaining else len(explaining)
        ),
        default=None,
    )


def _culprit(gate: Gate | None, watching: Watching) -> str:
    if gate and gate.name is Reason.MACHINE_PRESSURE:
        first = top_foreign(watching)
        return first.name if first else ""
    return gate.watch if gate else ""
