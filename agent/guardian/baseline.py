"""What was normal on this machine before the flip.

Pure: samples in, a Baseline out. It is stored beside the boot record, so a
guardian that restarts, or a machine that reboots in a trial, still knows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec

from agent.guardian.samples import ProbeResult, ProcessSample, Root, Sample
from agent.guardian.trace import Trace, record

SAMPLES_MAX = 600  # ten minutes at one a second; the caller's deque(maxlen=...)
IDLE_SAMPLES_MAX = 60  # an hour of idle looks


class WatchBaseline(msgspec.Struct, frozen=True, kw_only=True):
    """One watched process before the flip.

    cpu_mean and cpu_p95 are None if it never ran while watched; probe_ok is
    None if no probe was answered or failed. restarts were seen meanwhile.
    root is its life at the end, None if it was gone.
    """

    alive: bool = False
    absent: bool = False
    root: Root | None = None
    restarts: int = 0
    cpu_mean: float | None = None
    cpu_p95: float | None = None
    rss_bytes: int | None = None
    probe_ok: bool | None = None
    probe_mean_s: float | None = None


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """The machine before the flip; `Baseline()` is "nothing is known"."""

    observed_s: float = 0.0
    watches: dict[str, WatchBaseline] = {}
    source_reachable: bool | None = None
    busy_mean: float | None = None
    trace: Trace = Trace()

    def watch(self, name: str) -> WatchBaseline:
        """What is known of one watch; an empty one if nothing is."""
        return self.watches.get(name, _UNKNOWN)


_UNKNOWN = WatchBaseline()


def measure(samples: Sequence[Sample], idle: Sequence[Sample] = ()) -> Baseline:
    """The baseline that `samples`, oldest first, and idle looks add up to.

    A process's CPU baseline is what it used in the samples or over the idle
    looks, whichever is more: neither a quiet half minute nor a quiet night
    makes ordinary work look like a fault. Samples after a suspend don't count.
    """
    usable = [item for item in samples if not item.suspended and item.elapsed_s > 0]
    calm = [item for item in idle if not item.suspended and item.elapsed_s > 0]
    names = dict.fromkeys(process.name for item in samples for process in item.processes)
    trace = Trace()
    for item in usable:
        trace = record(trace, item)
    return Baseline(
        observed_s=sum(item.elapsed_s for item in usable),
        watches={name: _watch(name, samples, usable, calm) for name in names},
        source_reachable=_last_known(item.source_reachable for item in samples),
        busy_mean=_mean((item.machine.busy_share, item.elapsed_s) for item in usable),
        trace=trace,
    )


def _watch(
    name: str, samples: Sequence[Sample], usable: Sequence[Sample], calm: Sequence[Sample]
) -> WatchBaseline:
    answers = [item for sample in samples for item in sample.probes if item.name == name]
    seen = _weighed(name, usable)
    recent, long_run = (_mean(_cpu(seen)), _mean(_cpu(_weighed(name, calm))))
    known = [value for value in (recent, long_run) if value is not None]
    last = _process(name, samples[-1])
    return WatchBaseline(
        alive=last is not None and last.alive,
        absent=bool(usable) and not seen,
        root=last.root if last else None,
        restarts=_restarts(name, samples),
        cpu_mean=max(known, default=None),
        cpu_p95=_percentile_95([process.cpu_share for process, _ in seen]),
        rss_bytes=_rounded(_mean((process.rss_bytes, weight) for process, weight in seen)),
        probe_ok=_mostly_ok(answers),
        probe_mean_s=_mean((item.elapsed_s, 1.0) for item in answers),
    )


def _weighed(name: str, samples: Sequence[Sample]) -> list[tuple[ProcessSample, float]]:
    """The process in each sample in which it ran, with the seconds it stands for."""
    found = ((_process(name, item), item.elapsed_s) for item in samples)
    return [(process, weight) for process, weight in found if process and process.alive]


def _cpu(seen: Iterable[tuple[ProcessSample, float]]) -> list[tuple[float, float]]:
    return [(process.cpu_share, weight) for process, weight in seen]


def _process(name: str, sample: Sample) -> ProcessSample | None:
    return next((item for item in sample.processes if item.name == name), None)


def _restarts(name: str, samples: Sequence[Sample]) -> int:
    found = (_process(name, item) for item in samples)
    roots = [process.root for process in found if process and process.root]
    return sum(before != after for before, after in pairwise(roots))


def _mostly_ok(answers: Sequence[ProbeResult]) -> bool | None:
    if not answers:
        return None
    return sum(item.ok for item in answers) * 2 > len(answers)


def _last_known(values: Iterable[bool | None]) -> bool | None:
    known = [value for value in values if value is not None]
    return known[-1] if known else None


def _mean(weighed: Iterable[tuple[float, float]]) -> float | None:
    pairs = list(weighed)
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else None


def _percentile_95(values: Sequence[float]) -> float | None:
    return sorted(values)[int(0.95 * (len(values) - 1))] if values else None


def _rounded(value: float | None) -> int | None:
    return None if value is None else round(value)
