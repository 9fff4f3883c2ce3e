"""Every gate between a trial and its commit, with its figure and its threshold.

Pure. `agentctl explain` shows them; verdict takes the first one that holds as
the reason to wait.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from agent.guardian import conditions
from agent.guardian.baseline import Baseline, WatchBaseline
from agent.guardian.conditions import Limits
from agent.guardian.policy import Policy
from agent.guardian.samples import ProgramSample, TopProcess
from agent.guardian.watching import Watching, WatchState, is_source_lost

SHORT_S = 10.0  # less than this is told with a tenth


class Reason(StrEnum):
    """Why a trial waits, is kept or is reverted: stable codes."""

    WARMING_UP = "warming_up"
    ON_PROBATION = "on_probation"
    HEALTHY = "healthy"
    CPU_PINNED = "cpu_pinned"
    MEMORY_GROWTH = "memory_growth"
    CRASH_LOOP = "crash_loop"
    PROCESS_MISSING = "process_missing"
    PROBE_FAILED = "probe_failed"
    MACHINE_PRESSURE = "machine_pressure"
    SOURCE_UNREACHABLE = "source_unreachable"
    PROBATION_OVERDUE = "probation_overdue"
    PROGRAM_UNPROVEN = "program_unproven"
    PROGRAM_NOT_STARTED = "program_not_started"
    PROGRAM_SILENT = "program_silent"
    PROGRAM_CUT_OFF = "program_cut_off"


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """One condition of a commit.

    watch is "" for the machine as a whole. measured and threshold are in
    `unit`, None where there is no figure or it can't be judged. holding: it
    keeps the present seconds from counting as healthy.
    """

    name: Reason
    watch: str = ""
    measured: float | None
    threshold: float | None
    unit: str
    holding: bool
    sentence: str


def gates(watching: Watching, policy: Policy, baseline: Baseline) -> tuple[Gate, ...]:
    """All gates, the ones of each watch first, probation itself last."""
    per_watch = (
        gate
        for name, state in watching.watches.items()
        for gate in _watch_gates(state, watching, policy, baseline.watch(name))
    )
    return (
        *per_watch,
        _pressure(watching),
        _source(watching, baseline),
        *(_program(item) for item in (watching.last.program if watching.last else ())),
        _warmup(watching, policy),
        _probation(watching, policy),
    )


def _watch_gates(
    state: WatchState, watching: Watching, policy: Policy, before: WatchBaseline
) -> tuple[Gate, ...]:
    cores = watching.last.machine.cpu_count if watching.last else 1
    limit = conditions.limits(policy, before, cores)
    running = (
        _process(state, before),
        _cpu(state, watching, limit, before),
        _memory(state, limit, before),
        _crashes(state, policy, before),
    )
    return (*running, _probe(state, policy, before)) if state.now.probed else running


def _process(state: WatchState, before: WatchBaseline) -> Gate:
    name, missing = state.now.name, conditions.is_missing(state.now, before)
    text = f"{name} runs" if state.now.alive else f"{name} doesn't run"
    text += f" ({state.now.problem})" if state.now.problem else ""
    if not state.now.alive and not missing:
        text += "; it didn't before the update either, so it isn't judged"
    return Gate(
        name=Reason.PROCESS_MISSING,
        watch=name,
        measured=float(state.now.alive),
        threshold=1.0,
        unit="processes",
        holding=missing,
        sentence=text,
    )


def _cpu(state: WatchState, watching: Watching, limit: Limits, before: WatchBaseline) -> Gate:
    now, full = state.now, watching.last is not None and conditions.is_saturated(watching.last)
    return Gate(
        name=Reason.CPU_PINNED,
        watch=now.name,
        measured=now.cpu_share,
        threshold=limit.cpu_share,
        unit="cores",
        holding=conditions.is_over_cpu(now, limit, saturated=full),
        sentence=f"{now.name} uses {now.cpu_share:.2f} of a core"
        + (f" and asks for {now.cpu_demand:.2f} on a full machine" if full else "")
        + f"; {before_text(before)}; {_cpu_limit_text(limit)}",
    )


def before_text(before: WatchBaseline) -> str:
    """What is known of a watch's CPU before the update, in words."""
    if before.cpu_mean is None:
        return "before the update it wasn't seen running"
    return f"before the update {before.cpu_mean:.2f}"


def _cpu_limit_text(limit: Limits) -> str:
    if limit.cpu_share is None:
        return "that was nearly all this machine has, so its CPU can't be judged"
    return f"limit {limit.cpu_share:.2f}"


def _memory(state: WatchState, limit: Limits, before: WatchBaseline) -> Gate:
    now = state.now
    text = f"{now.name} holds {mebibytes(now.rss_bytes)}; "
    if limit.rss_bytes is None or before.rss_bytes is None:
        text += "before the update it wasn't seen running, so its memory can't be judged"
    else:
        text += (
            f"before the update {mebibytes(before.rss_bytes)}; limit {mebibytes(limit.rss_bytes)}"
        )
    return Gate(
        name=Reason.MEMORY_GROWTH,
        watch=now.name,
        measured=float(now.rss_bytes),
        threshold=None if limit.rss_bytes is None else float(limit.rss_bytes),
        unit="bytes",
        holding=conditions.is_over_rss(now, limit),
        sentence=text,
    )


def mebibytes(count: int) -> str:
    """`count` bytes, for people."""
    return f"{count / (1 << 20):,.0f} MiB"


def _crashes(state: WatchState, policy: Policy, before: WatchBaseline) -> Gate:
    judged = conditions.are_crashes_judged(before)
    text = f"{state.now.name} ended unexpectedly {times(state.crashes)} in this trial; "
    text += f"{policy.crashes_allowed} allowed"
    if not judged:
        text += f"; it did {times(before.restarts)} just before the update, so it isn't judged"
    return Gate(
        name=Reason.CRASH_LOOP,
        watch=state.now.name,
        measured=float(state.crashes),
        threshold=float(policy.crashes_allowed) if judged else None,
        unit="crashes",
        holding=judged and state.crashes > policy.crashes_allowed,
        sentence=text,
    )


def times(count: int) -> str:
    """`count` occasions, for people."""
    return "once" if count == 1 else f"{count} times"


def _probe(state: WatchState, policy: Policy, before: WatchBaseline) -> Gate:
    judged = conditions.is_probe_judged(state.now, before)
    return Gate(
        name=Reason.PROBE_FAILED,
        watch=state.now.name,
        measured=float(state.probe_failures),
        threshold=float(policy.probe_failures_allowed) if judged else None,
        unit="failures in a row",
        holding=judged and state.probe_ok is not True,
        sentence=_probe_text(state, before),
    )


def _probe_text(state: WatchState, before: WatchBaseline) -> str:
    name, answer = state.now.name, state.probe
    if answer is None:
        text = f"{name}: its probe hasn't answered yet"
    elif answer.ok:
        text = f"{name}: its probe answered in {answer.elapsed_s:.2f} s"
    else:
        text = f"{name}: its probe failed after {answer.elapsed_s:.2f} s ({answer.detail})"
    if before.probe_ok is False:
        text += "; it failed before the update too, so it isn't judged"
    return text


def _pressure(watching: Watching) -> Gate:
    sample = watching.last
    machine = sample.machine if sample else None
    return Gate(
        name=Reason.MACHINE_PRESSURE,
        measured=machine.foreign_share if machine else None,
        threshold=conditions.FOREIGN_SHARE,
        unit="share of the machine",
        holding=sample is not None and conditions.is_foreign_pressure(sample),
        sentence=_pressure_text(watching),
    )


def _pressure_text(watching: Watching) -> str:
    if watching.last is None:
        return "the machine hasn't been looked at since the flip"
    machine = watching.last.machine
    text = (
        f"the machine is {machine.busy_share:.0%} busy, other programs {machine.foreign_share:.0%}"
    )
    first = top_foreign(watching)
    if conditions.is_foreign_pressure(watching.last):
        text += f"; a healthy second like that counts {conditions.PRESSED_CREDIT:g}"
    if first and conditions.is_foreign_pressure(watching.last):
        text += f"; most by {first.name} (pid {first.pid}), {first.share:.2f} of a core"
    return text


def top_foreign(watching: Watching) -> TopProcess | None:
    """The busiest program that has nothing to do with the update."""
    top = watching.last.machine.top if watching.last else ()
    return next((item for item in top if item.foreign), None)


def _source(watching: Watching, baseline: Baseline) -> Gate:
    lost = is_source_lost(watching, baseline)
    reached = watching.source_reachable
    words = {None: "hasn't been asked since the flip", True: "answers", False: "can't be reached"}
    text = f"the update source {words[reached]}"
    if reached is False and not lost:
        text += "; it wasn't known to answer before the update either, so it isn't judged"
    return Gate(
        name=Reason.SOURCE_UNREACHABLE,
        measured=None if reached is None else float(reached),
        threshold=1.0 if baseline.source_reachable else None,
        unit="answers",
        holding=lost,
        sentence=text,
    )


def _program(item: ProgramSample) -> Gate:
    told = f"the new agent program {item.version}, asked as {item.question},"
    if item.proven:
        text = f"{told} answers"
    elif not item.how:
        text = f"{told} hasn't answered yet"
    else:
        text = f"{told} failed ({item.how}: {item.detail})"
        text += f"; so does the prior one ({item.control})" if item.control else ""
    return Gate(
        name=Reason.PROGRAM_UNPROVEN,
        measured=float(item.losses),
        threshold=float(conditions.PROGRAM_LOSSES_ALLOWED),
        unit="failures that the prior program doesn't share",
        holding=not item.proven,
        sentence=text,
    )


def _warmup(watching: Watching, policy: Policy) -> Gate:
    return Gate(
        name=Reason.WARMING_UP,
        measured=watching.warm_s,
        threshold=policy.warmup_s,
        unit="seconds",
        holding=watching.warm_s < policy.warmup_s,
        sentence=f"warm-up: {_part(watching.warm_s, policy.warmup_s)} s",
    )


def _probation(watching: Watching, policy: Policy) -> Gate:
    return Gate(
        name=Reason.ON_PROBATION,
        measured=watching.healthy_s,
        threshold=policy.probation_s,
        unit="healthy seconds",
        holding=watching.healthy_s < policy.probation_s,
        sentence=f"probation: {_part(watching.healthy_s, policy.probation_s)} healthy seconds",
    )


def _part(past_s: float, due_s: float) -> str:
    """`3 of 20`, and `0.3 of 0.5` where whole seconds would say nothing."""
    places = 1 if 0 < due_s < SHORT_S else 0
    return f"{min(past_s, due_s):.{places}f} of {due_s:.{places}f}"
