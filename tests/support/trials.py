"""A small machine in memory: an engine, a clock, other programs; samples come out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from agent.guardian import verdict
from agent.guardian.verdict import (
    MachineSample,
    Outcome,
    Policy,
    ProbeResult,
    ProcessSample,
    Root,
    Sample,
    TopProcess,
    Verdict,
)

ENGINE = "yara-engine"
MIB = 1 << 20
ROOT = Root(100, 1.0)


@dataclass(frozen=True)
class Look:
    """One second of the machine. engine_pid None: it doesn't run."""

    cpu: float = 0.06
    demand: float | None = None
    rss: int = 100 * MIB
    root: Root | None = ROOT
    probe: bool | None = None  # an answer that came; None for none
    busy: float = 0.2
    foreign: float = 0.1
    cores: int = 2
    seconds: float = 1.0
    suspended: bool = False
    source: bool | None = None
    required: bool = True
    probed: bool = False
    starved: bool = False  # the answer is missing because nothing could be started


def sample(look: Look, at: float) -> Sample:
    """The sample that the prober would make of `look` at monotonic time `at`."""
    answers = () if look.probe is None else (_answer(look.probe, starved=look.starved),)
    process = ProcessSample(
        name=ENGINE,
        root=look.root,
        cpu_share=look.cpu if look.root else 0.0,
        cpu_demand=max(look.cpu, look.demand or 0.0) if look.root else 0.0,
        rss_bytes=look.rss if look.root else 0,
        required=look.required,
        probed=look.probed or look.probe is not None,
    )
    top = (TopProcess("yara", 100, look.cpu, foreign=False), TopProcess("cc1plus", 999, 1.9))
    return Sample(
        monotonic_s=at,
        elapsed_s=look.seconds,
        suspended=look.suspended,
        machine=MachineSample(
            cpu_count=look.cores, busy_share=look.busy, foreign_share=look.foreign, top=top
        ),
        processes=(process,),
        probes=answers,
        source_reachable=look.source,
    )


def _answer(ok: bool, *, starved: bool) -> ProbeResult:
    elapsed_s = 0.01 if ok else 5.0
    return ProbeResult(name=ENGINE, ok=ok, elapsed_s=elapsed_s, detail="no answer", starved=starved)


def samples(looks: Iterable[Look], start: float = 1000.0) -> list[Sample]:
    """Samples of consecutive looks."""
    found, at = [], start
    for look in looks:
        at += look.seconds
        found.append(sample(look, at))
    return found


@dataclass
class Trial:
    """A flip and what follows; every `see` is judged."""

    policy: Policy = field(default_factory=Policy)
    before: Look = field(default_factory=Look)
    baseline: verdict.Baseline | None = None
    activation_done_at: float | None = 0.0
    at: float = 5000.0

    def __post_init__(self) -> None:
        if self.baseline is None:
            self.baseline = verdict.measure(samples([self.before] * 30, self.at - 30))
        self.known = self.baseline
        self.watching = verdict.begin(self.known)
        self.elapsed = 0.0

    def see(self, look: Look) -> Verdict:
        """One more look, and the verdict after it."""
        self.at += look.seconds
        self.elapsed += look.seconds
        self.watching = verdict.observe(
            self.watching,
            sample(look, self.at),
            self.policy,
            self.known,
            activation_done_at=self.activation_done_at,
        )
        return verdict.judge(self.watching, self.policy, self.known)

    def see_for(self, seconds: float, look: Look | None = None, **changes: object) -> Verdict:
        """The same look again and again; stops at the first verdict that isn't WAIT."""
        repeated = replace(look or self.before, **changes)
        found, end = self.see(repeated), self.elapsed + seconds - repeated.seconds
        while found.outcome is Outcome.WAIT and self.elapsed < end:
            found = self.see(repeated)
        return found

    def see_each(self, looks: Iterable[Look]) -> Verdict:
        """Different looks; stops at the first verdict that isn't WAIT."""
        found = None
        for look in looks:
            found = self.see(look)
            if found.outcome is not Outcome.WAIT:
                break
        assert found is not None
        return found
