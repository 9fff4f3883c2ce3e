"""A bounded record of samples, for people to look at afterwards.

Keeps the latest 60 as they are, and of what came before at most 60 at equal
distances: whenever those are full, every second one is dropped and the
distance doubles. So a day of probation costs as much room as two minutes.
"""

from __future__ import annotations

import msgspec

from agent.guardian.samples import Sample

RECENT = 60
COARSE = 60


class WatchPoint(msgspec.Struct, frozen=True):
    """One watched process at one point; cpu in cores."""

    cpu_share: float
    cpu_demand: float
    rss_bytes: int
    alive: bool


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One sample, reduced to its figures. at_s is on the monotonic clock."""

    at_s: float
    elapsed_s: float
    busy_share: float
    foreign_share: float
    watches: dict[str, WatchPoint]
    probes: dict[str, bool]


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """See the module. `passed` counts points that went from recent to coarse."""

    coarse: tuple[Point, ...] = ()
    recent: tuple[Point, ...] = ()
    stride: int = 1
    passed: int = 0

    @property
    def points(self) -> tuple[Point, ...]:
        """Every point kept, oldest first."""
        return self.coarse + self.recent


def record(trace: Trace, sample: Sample) -> Trace:
    """`trace` with `sample` at its end."""
    recent = (*trace.recent, point(sample))
    if len(recent) <= RECENT:
        return msgspec.structs.replace(trace, recent=recent)
    aged = _age(trace, recent[0])
    return msgspec.structs.replace(aged, recent=recent[1:])


def _age(trace: Trace, oldest: Point) -> Trace:
    coarse, stride = trace.coarse, trace.stride
    if trace.passed % stride == 0:
        coarse = (*coarse, oldest)
    if len(coarse) > COARSE:
        coarse, stride = coarse[::2], stride * 2
    return msgspec.structs.replace(trace, coarse=coarse, stride=stride, passed=trace.passed + 1)


def point(sample: Sample) -> Point:
    """The figures of one sample."""
    return Point(
        at_s=round(sample.monotonic_s, 3),
        elapsed_s=round(sample.elapsed_s, 3),
        busy_share=round(sample.machine.busy_share, 4),
        foreign_share=round(sample.machine.foreign_share, 4),
        watches={
            item.name: WatchPoint(
                round(item.cpu_share, 4), round(item.cpu_demand, 4), item.rss_bytes, item.alive
            )
            for item in sample.processes
        },
        probes={item.name: item.ok for item in sample.probes},
    )
