"""When a watched process, or the machine, is not as it should be.

Pure: one sample, what was normal before, and the policy come in.
"""

from __future__ import annotations

import msgspec

from agent.guardian.baseline import WatchBaseline
from agent.guardian.policy import Policy
from agent.guardian.samples import ProcessSample, ProgramSample, Sample

SATURATED_SHARE = 0.95  # of all cores; above it a process no longer gets what it asks for
FOREIGN_SHARE = 0.25  # of all cores; that much by others explains slowness
PRESSED_FACTOR = 1.5  # two hyperthreads that share a core slow each other by up to that
PRESSED_FLOOR_SHARE = 0.05  # of a core; less is noise on a full machine
PRESSED_CREDIT = 0.25  # healthy seconds in one that others keep full: weaker evidence
PROGRAM_LOSSES_ALLOWED = 2  # in a row; once or twice a source, too, answers only every other time
CAP_SHARE = 0.9  # of what the machine has; a limit above it could never be reached


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one watch may use. None: that figure can't be judged."""

    cpu_share: float | None
    pressed_share: float  # what it must at least use to be called pinned on a full machine
    rss_bytes: int | None


def limits(policy: Policy, before: WatchBaseline, cpu_count: int) -> Limits:
    """What a watch may use after the flip, by its own figures from before."""
    used = before.cpu_mean or 0.0
    cap = CAP_SHARE * cpu_count
    asked = max(policy.cpu_floor_share, used * policy.cpu_factor)
    return Limits(
        cpu_share=min(asked, cap) if used * PRESSED_FACTOR < cap else None,
        pressed_share=max(used * PRESSED_FACTOR, PRESSED_FLOOR_SHARE),
        rss_bytes=None
        if before.rss_bytes is None
        else max(policy.memory_floor_bytes, round(before.rss_bytes * policy.memory_factor)),
    )


def is_saturated(sample: Sample) -> bool:
    """Whether the machine has no core left to give."""
    return sample.machine.busy_share >= SATURATED_SHARE


def is_foreign_pressure(sample: Sample) -> bool:
    """Whether processes outside the update keep the machine full."""
    return is_saturated(sample) and sample.machine.foreign_share >= FOREIGN_SHARE


def is_over_cpu(process: ProcessSample, limit: Limits, *, saturated: bool) -> bool:
    """Whether a process uses more CPU than its limit.

    On a full machine its share says little, because nobody gets what he asks
    for: then what it asks for counts, as long as it also gets clearly more
    than before. A healthy process on a full machine gets less than before.
    """
    if limit.cpu_share is None:
        return False
    if process.cpu_share > limit.cpu_share:
        return True
    pressing = process.cpu_share >= limit.pressed_share
    return saturated and pressing and asks_too_much(process, limit)


def asks_too_much(process: ProcessSample, limit: Limits) -> bool:
    """Whether a process would use more CPU than its limit, if it got all it asks for."""
    return limit.cpu_share is not None and process.cpu_demand > limit.cpu_share


def is_over_rss(process: ProcessSample, limit: Limits) -> bool:
    """Whether a process holds more memory than its limit."""
    return limit.rss_bytes is not None and process.rss_bytes > limit.rss_bytes


def is_missing(process: ProcessSample, before: WatchBaseline) -> bool:
    """Whether a process should run and doesn't."""
    expected = before.alive or (process.required and not before.absent)
    return not process.alive and expected


def is_probe_judged(process: ProcessSample, before: WatchBaseline) -> bool:
    """Whether a failing probe can be the release's doing: it worked before, or is new."""
    expected = process.alive or before.alive or (process.required and not before.absent)
    return process.probed and expected and before.probe_ok is not False


def is_program_unproven(sample: Sample) -> bool:
    """Whether the agent program on trial still owes an answer."""
    return not all(item.proven for item in sample.program)


def is_program_lost(program: ProgramSample) -> bool:
    """Whether a question was answered by the prior agent program alone, too often."""
    return program.losses > PROGRAM_LOSSES_ALLOWED


def are_crashes_judged(before: WatchBaseline) -> bool:
    """Whether a restart can be the release's doing: none was seen before the flip."""
    return before.restarts == 0
