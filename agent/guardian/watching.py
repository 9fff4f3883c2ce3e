"""What a trial has shown so far, as a value.

Pure: `observe` takes what was known and one more sample, and returns what is
known now. Nothing is decided here; that is verdict.

 * Time counts only while it is observed: a gap between samples, a suspended
   machine or a starved guardian adds no healthy second.
 * A sample that isn't later than the last one changes nothing.
 * A changed root process is a crash even if every probe passed, but for one
   restart a watch until the activation hooks are done.
 * What was broken before the flip isn't held against the release.
"""

from __future__ import annotations

import msgspec

from agent.guardian.baseline import Baseline, WatchBaseline
from agent.guardian.conditions import (
    PRESSED_CREDIT,
    asks_too_much,
    is_foreign_pressure,
    is_missing,
    is_over_cpu,
    is_over_rss,
    is_probe_judged,
    is_program_unproven,
    is_saturated,
    limits,
)
from agent.guardian.policy import Policy
from agent.guardian.samples import ProbeResult, ProcessSample, Root, Sample
from agent.guardian.trace import Trace, record

HEALTHY_GAP_MAX_S = 5.0  # between samples a second apart; more is a guardian that didn't run
OBSERVED_GAP_MAX_S = 10.0  # counted of any longer gap
RESTART_GRACE_S = 5.0  # after the hooks; an engine may be late to come back
WINDOW_SAMPLES_MIN = 3  # never fewer looks than that make a window
BUCKETS = 60  # a window's resolution


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds a watch spent beyond each limit, and core- and byte-seconds used."""

    over_cpu_s: float = 0.0
    over_rss_s: float = 0.0
    missing_s: float = 0.0
    cpu_core_s: float = 0.0
    demand_core_s: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            over_cpu_s=self.over_cpu_s + other.over_cpu_s,
            over_rss_s=self.over_rss_s + other.over_rss_s,
            missing_s=self.missing_s + other.missing_s,
            cpu_core_s=self.cpu_core_s + other.cpu_core_s,
            demand_core_s=self.demand_core_s + other.demand_core_s,
        )


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """A slice of the window, or all of it added up."""

    observed_s: float = 0.0
    tallies: dict[str, Tally] = {}

    def __add__(self, other: Bucket) -> Bucket:
        names = dict.fromkeys((*self.tallies, *other.tallies))
        return Bucket(
            observed_s=self.observed_s + other.observed_s,
            tallies={name: self.tally(name) + other.tally(name) for name in names},
        )

    def tally(self, name: str) -> Tally:
        """What is tallied of one watch."""
        return self.tallies.get(name, _NOTHING)


_NOTHING = Tally()


class WatchState(msgspec.Struct, frozen=True, kw_only=True):
    """One watch in a trial. probe_ok is None until the first answer.

    carried are crashes before the guardian started, ends those seen since,
    restarts those that the service manager counted, last_restarts its latest
    figure. restart_used: the one restart that activation may cause has been.
    """

    now: ProcessSample
    last_root: Root | None = None
    carried: int = 0
    ends: int = 0
    restarts: int = 0
    last_restarts: int | None = None
    restart_used: bool = False
    probe_ok: bool | None = None
    probe_failures: int = 0
    probe: ProbeResult | None = None

    @property
    def crashes(self) -> int:
        """An end and the restart that follows it are one crash, whoever noticed it.

        The service manager also counts those that came and went between two looks.
        """
        return self.carried + max(0, max(self.ends, self.restarts) - self.restart_used)


class Carried(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a trial that outlives the guardian; stored as JSON."""

    healthy_s: float = 0.0
    observed_s: float = 0.0
    warm_s: float = 0.0
    crashes: dict[str, int] = {}
    roots: dict[str, Root] = {}


class Watching(msgspec.Struct, frozen=True, kw_only=True):
    """A trial as seen so far.

    observed_s counts the whole trial, warm_s since it began on this boot,
    healthy_s the seconds in which nothing held it. window spans at most
    window_s of observed time after the warm-up.
    """

    healthy_s: float = 0.0
    observed_s: float = 0.0
    warm_s: float = 0.0
    watches: dict[str, WatchState] = {}
    carried_crashes: dict[str, int] = {}
    carried_roots: dict[str, Root] = {}
    window: tuple[Bucket, ...] = ()
    source_reachable: bool | None = None
    last: Sample | None = None
    trace: Trace = Trace()

    @property
    def carried(self) -> Carried:
        """What to store, so that a restarted guardian can go on."""
        roots = self.carried_roots | {k: item.last_root for k, item in self.watches.items()}
        return Carried(
            healthy_s=self.healthy_s,
            observed_s=self.observed_s,
            warm_s=self.warm_s,
            crashes=self.carried_crashes
            | {name: item.crashes for name, item in self.watches.items()},
            roots={name: root for name, root in roots.items() if root is not None},
        )


def begin(
    baseline: Baseline, carried: Carried | None = None, *, rebooted: bool = False
) -> Watching:
    """A trial at its flip, or one taken up again from what was carried.

    After a reboot everything starts again by itself: the warm-up is due once
    more, and new processes aren't crashes.
    """
    if carried is None:
        roots = {name: item.root for name, item in baseline.watches.items() if item.root}
        return Watching(carried_roots=roots)
    return Watching(
        healthy_s=carried.healthy_s,
        observed_s=carried.observed_s,
        warm_s=0.0 if rebooted else carried.warm_s,
        carried_crashes=carried.crashes,
        carried_roots={} if rebooted else carried.roots,
    )


def observe(
    watching: Watching,
    sample: Sample,
    policy: Policy,
    baseline: Baseline,
    *,
    activation_done_at: float | None,
) -> Watching:
    """`watching` with one more sample.

    activation_done_at is when the activation hooks ended, on the monotonic
    clock, and None while they still run.
    """
    elapsed_s = _elapsed(watching.last, sample)
    if elapsed_s is None:
        return watching
    expected = activation_done_at is None or (
        sample.monotonic_s <= activation_done_at + RESTART_GRACE_S
    )
    counted_s = 0.0 if sample.suspended else min(elapsed_s, OBSERVED_GAP_MAX_S)
    starved = sample.suspended or elapsed_s > HEALTHY_GAP_MAX_S
    warming = watching.warm_s < policy.warmup_s
    seen = msgspec.structs.replace(
        watching,
        observed_s=watching.observed_s + counted_s,
        warm_s=watching.warm_s + counted_s,
        watches=_watches(
            watching,
            sample,
            restart_expected=expected,
            excused=starved or warming or is_foreign_pressure(sample),
        ),
        source_reachable=(
            watching.source_reachable
            if sample.source_reachable is None
            else sample.source_reachable
        ),
        last=sample,
        trace=record(watching.trace, sample),
    )
    if warming:
        return seen
    windowed = _extend_window(seen, counted_s, policy, baseline)
    if starved or any_failing(windowed, policy, baseline):
        return windowed
    credit = PRESSED_CREDIT if is_foreign_pressure(sample) else 1.0
    return msgspec.structs.replace(windowed, healthy_s=windowed.healthy_s + credit * elapsed_s)


def _elapsed(last: Sample | None, sample: Sample) -> float | None:
    """Seconds that `sample` adds; None if it isn't later than the last one."""
    if last is None:
        return 0.0
    since_last_s = sample.monotonic_s - last.monotonic_s
    if since_last_s <= 0:
        return None
    return max(0.0, min(sample.elapsed_s, since_last_s))


def is_source_lost(watching: Watching, baseline: Baseline) -> bool:
    """Whether the update source was reachable before the flip and isn't now."""
    return baseline.source_reachable is True and watching.source_reachable is False


def any_failing(watching: Watching, policy: Policy, baseline: Baseline) -> bool:
    """Whether anything in the last sample keeps its seconds from being healthy."""
    sample = watching.last
    if sample is None or is_source_lost(watching, baseline) or is_program_unproven(sample):
        return True
    return any(
        _is_holding(watching.watches[item.name], policy, baseline.watch(item.name), sample)
        for item in sample.processes
    )


def _is_holding(state: WatchState, policy: Policy, before: WatchBaseline, sample: Sample) -> bool:
    limit = limits(policy, before, sample.machine.cpu_count)
    return (
        is_missing(state.now, before)
        or is_over_cpu(state.now, limit, saturated=is_saturated(sample))
        or (is_foreign_pressure(sample) and asks_too_much(state.now, limit))
        or is_over_rss(state.now, limit)
        or (is_probe_judged(state.now, before) and state.probe_ok is not True)
    )


def _watches(
    watching: Watching, sample: Sample, *, restart_expected: bool, excused: bool
) -> dict[str, WatchState]:
    answers = {item.name: item for item in sample.probes}
    found: dict[str, WatchState] = {}
    for process in sample.processes:
        known = watching.watches.get(process.name) or WatchState(
            now=process,
            last_root=watching.carried_roots.get(process.name),
            carried=watching.carried_crashes.get(process.name, 0),
        )
        moved = _follow(known, process, restart_expected=restart_expected)
        answer = answers.get(process.name)
        found[process.name] = _hear(moved, answer, excused=excused) if answer else moved
    return found


def _follow(known: WatchState, process: ProcessSample, *, restart_expected: bool) -> WatchState:
    """Count the end of a process once, when it is seen, not when the next one starts."""
    ended = known.last_root is not None and process.root != known.last_root
    restarts = _restarts_since(known.last_restarts, process.restarts)
    free = (ended or restarts > 0) and restart_expected
    return msgspec.structs.replace(
        known,
        now=process,
        last_root=process.root,
        ends=known.ends + ended,
        restarts=known.restarts + restarts,
        last_restarts=known.last_restarts if process.restarts is None else process.restarts,
        restart_used=known.restart_used or free,
    )


def _restarts_since(before: int | None, now: int | None) -> int:
    """A smaller figure is one that an administrator's restart has set to zero."""
    if before is None or now is None:
        return 0
    return now - before if now >= before else now


def _hear(known: WatchState, answer: ProbeResult, *, excused: bool) -> WatchState:
    """A failure that is excused (warm-up, busy machine, none left to ask) is neither counted
    nor forgiven.
    """
    counted = not (excused or answer.starved)
    failures = 0 if answer.ok else known.probe_failures + counted
    return msgspec.structs.replace(known, probe=answer, probe_ok=answer.ok, probe_failures=failures)


def _extend_window(
    watching: Watching, counted_s: float, policy: Policy, baseline: Baseline
) -> Watching:
    sample = watching.last
    if sample is None or counted_s <= 0:
        return watching
    seconds = min(counted_s, max(1.0, policy.window_s) / WINDOW_SAMPLES_MIN)
    bucket = Bucket(
        observed_s=seconds,
        tallies={
            item.name: _tally(item, policy, baseline.watch(item.name), sample, seconds)
            for item in sample.processes
        },
    )
    window = _trimmed(_appended(watching.window, bucket, policy.window_s), policy.window_s)
    return msgspec.structs.replace(watching, window=window)


def _tally(
    process: ProcessSample, policy: Policy, before: WatchBaseline, sample: Sample, seconds: float
) -> Tally:
    limit = limits(policy, before, sample.machine.cpu_count)
    over_cpu = is_over_cpu(process, limit, saturated=is_saturated(sample))
    return Tally(
        over_cpu_s=seconds * over_cpu,
        over_rss_s=seconds * is_over_rss(process, limit),
        missing_s=seconds * is_missing(process, before),
        cpu_core_s=seconds * process.cpu_share,
        demand_core_s=seconds * process.cpu_demand,
    )


def _appended(window: tuple[Bucket, ...], bucket: Bucket, window_s: float) -> tuple[Bucket, ...]:
    """Buckets of a sixtieth of the window, so that a day's window stays small."""
    if window and window[-1].observed_s < window_s / BUCKETS:
        return (*window[:-1], window[-1] + bucket)
    return (*window, bucket)


def _trimmed(window: tuple[Bucket, ...], window_s: float) -> tuple[Bucket, ...]:
    total = sum(item.observed_s for item in window)
    first = 0
    while first < len(window) - 1 and total - window[first].observed_s >= window_s:
        total -= window[first].observed_s
        first += 1
    return window[first:]
