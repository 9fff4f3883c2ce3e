"""What the guardian saw in one look at the machine.

Values only: health makes them, verdict judges them. Shares called cpu are
fractions of one core (2.0 is two cores busy); shares of the machine are
fractions of all its cores, 0 to 1. Every time is on the monotonic clock.
"""

from __future__ import annotations

import msgspec


class Root(msgspec.Struct, frozen=True):
    """One life of a process: a reused pid has another create_time.

    create_time is seconds on a clock that the platform never steps where it
    has one (since boot on Linux); good for equality only.
    """

    pid: int
    create_time: float


class ProcessSample(msgspec.Struct, frozen=True, kw_only=True):
    """A watched process and everything below it, since the previous sample.

    name is the watch's. root is None while it doesn't run. cpu_demand is the
    time on a CPU and the time spent waiting for one; it equals cpu_share where
    the OS can't tell, and is never less. required and probed repeat the
    configuration: absence counts, and a probe exists. problem says why the
    process isn't found or its probe can't be asked. restarts is how often the
    service manager has started it again by itself, None where nobody counts.
    """

    name: str
    root: Root | None = None
    cpu_share: float = 0.0
    cpu_demand: float = 0.0
    rss_bytes: int = 0
    threads: int = 0
    pids: tuple[int, ...] = ()
    required: bool = True
    probed: bool = False
    problem: str = ""
    restarts: int | None = None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.root is not None


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, or the lack of one, of the watch called `name`.

    starved: it couldn't be asked, because the machine has no process or memory left.
    """

    name: str
    ok: bool
    elapsed_s: float
    detail: str = ""
    starved: bool = False


class TopProcess(msgspec.Struct, frozen=True):
    """One of the processes that use the most CPU; share is of one core.

    foreign: neither watched nor Holdfast's own.
    """

    name: str
    pid: int
    share: float
    foreign: bool = True


class MachineSample(msgspec.Struct, frozen=True, kw_only=True):
    """The machine as a whole, since the previous sample.

    busy_share counts every core; foreign_share is the part of it that neither
    a watched tree nor Holdfast itself explains. top is refreshed only under
    pressure. pressure_share is the kernel's own figure for time in which some
    task waited for a CPU (PSI, avg10), None where there is none.
    """

    cpu_count: int
    busy_share: float = 0.0
    foreign_share: float = 0.0
    top: tuple[TopProcess, ...] = ()
    pressure_share: float | None = None


class ProgramSample(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one question put to the agent program on trial (comparison).

    losses counts the times in a row that only the prior program could answer.
    how is a comparison.Answer, "" before the first. control is why the prior
    one couldn't either, "" if it could or wasn't asked.
    """

    question: str
    version: str
    proven: bool = False
    losses: int = 0
    how: str = ""
    detail: str = ""
    control: str = ""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One look at the machine.

    elapsed_s is since the previous look, 0 for the first. suspended: the
    machine slept in between. probes are the answers that came since the
    previous look, at most one a watch. source_reachable is the fetcher's last
    word, None if it has none. program is empty unless the trial changes the
    agent's own program.
    """

    monotonic_s: float
    elapsed_s: float
    machine: MachineSample
    suspended: bool = False
    processes: tuple[ProcessSample, ...] = ()
    probes: tuple[ProbeResult, ...] = ()
    source_reachable: bool | None = None
    program: tuple[ProgramSample, ...] = ()


class Headcount(msgspec.Struct, frozen=True):
    """The processes of one watch, its tree included, and how many threads these have."""

    name: str
    threads: int
    lives: tuple[Root, ...]


class Census(msgspec.Struct, frozen=True):
    """How many threads run on the whole machine, and who the watched processes are."""

    threads: int
    watches: tuple[Headcount, ...]
