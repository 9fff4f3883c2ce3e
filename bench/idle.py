"""What the agent costs while nothing happens: memory, CPU and wake-ups.

Memory is PSS: a page that n processes share counts for each of them with an
nth. What counts as idle is a guardian that has installed a release, completed
a check and has nothing to do but, where watches are configured, look at the
protected processes once a minute.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine
from bench.figures import Figure, Section
from tests.support.endpoint import Endpoint
from tests.support.feedserver import FeedServer

GUARDIAN_MB = 25.0
TOGETHER_MB = 60.0
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
SLEEPER = "import time; time.sleep(3600)"


@dataclass(frozen=True)
class Cost:
    """One process over a span. cpu_s has the kernel's resolution, a tick."""

    pss_mb: float
    cpu_s: float
    wakeups: int
    seconds: float

    def __str__(self) -> str:
        minute = 60 / self.seconds
        return f"{self.cpu_s * minute * 1e3:.0f} ms, {self.wakeups * minute:.1f} wake-ups"


def run(*, quick: bool) -> Section:
    """Without watches, then with three."""
    seconds = 5.0 if quick else 65.0
    with _sleeper([sys.executable, "-c", SLEEPER]) as peer:
        time.sleep(0.5)
        bare = pss_mb(peer.pid)
    figures: list[Figure] = []
    for what, watched in (("no watch", False), ("three watches", True)):
        figures += _figures(what, *_cost(seconds, watched=watched), bare_mb=bare)
    return Section(
        title="Idle",
        how=f"A guardian and its fetcher {seconds:g} s long, after an installation and a check "
        "over HTTP. Memory: PSS of /proc/PID/smaps_rollup, beside that of the same "
        f"interpreter asleep. CPU: user and system time a minute, which the kernel counts in "
        f"ticks of {TICK_S * 1e3:g} ms; wake-ups: "
        "voluntary context switches a minute. The watches are one by pid file, one by name "
        "and one with a socket probe; each is looked at once a minute while idle.",
        figures=tuple(figures),
    )


def _figures(what: str, guardian: Cost, fetcher: Cost, *, bare_mb: float) -> list[Figure]:
    together = guardian.pss_mb + fetcher.pss_mb
    peer = f"{bare_mb:.1f} MB (python -c sleep)"
    return [
        _memory(f"guardian, {what}", guardian.pss_mb, peer, bare_mb, GUARDIAN_MB),
        _memory(f"guardian and fetcher, {what}", together, peer, bare_mb, TOGETHER_MB),
        Figure(f"guardian a minute, {what}", str(guardian)),
        Figure(f"fetcher a minute, {what}", str(fetcher)),
    ]


def _memory(what: str, found: float, peer: str, peer_mb: float, goal: float) -> Figure:
    return Figure(
        what,
        f"{found:.1f} MB",
        peer,
        ratio=found / peer_mb,
        goal=f"at most {goal:g} MB",
        met=found <= goal,
    )


def _cost(seconds: float, *, watched: bool) -> tuple[Cost, Cost]:
    with machine.folder() as place, _sleeper(["sleep", "3600"]) as engine:
        desk = machine.vendor(place)
        extra = _watches(place, engine.pid) if watched else ""
        with (
            FeedServer(desk.feed) as server,
            machine.installed(
                place / "endpoint", url=server.url, root=desk.root, extra=extra
            ) as endpoint,
        ):
            endpoint.ctl("check", check=True)
            pids = processes(endpoint)
            time.sleep(2)  # what the check left to do
            before = [_counters(pid) for pid in pids]
            time.sleep(seconds)
            return tuple(  # type: ignore[return-value]
                _since(pid, counters, seconds) for pid, counters in zip(pids, before, strict=True)
            )


def _watches(place: Path, pid: int) -> str:
    (place / "engine.pid").write_text(f"{pid}\n")
    return (
        f'[[watch]]\nname = "engine"\npid_file = "{place / "engine.pid"}"\n'
        '[[watch]]\nname = "sleeper"\nprocess = "sleep"\n'
        f'[[watch]]\nname = "probed"\npid_file = "{place / "engine.pid"}"\n'
        f'probe = {{ unix = "{place / "endpoint" / "run" / "status.sock"}" }}\n'
    )


def processes(endpoint: Endpoint) -> tuple[int, int]:
    """The guardian's and the fetcher's pid."""
    assert endpoint.process is not None
    guardian = endpoint.process.pid
    listed = subprocess.run(
        ["pgrep", "-P", str(guardian), "-f", "agent.fetcher"],
        capture_output=True,
        text=True,
        check=True,
    )
    return guardian, int(listed.stdout.split()[0])


def pss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


def _counters(pid: int) -> tuple[float, int]:
    """CPU seconds and voluntary context switches so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    switches: Any = Path(f"/proc/{pid}/status").read_text().partition("voluntary_ctxt_switches:")[2]
    return (int(fields[11]) + int(fields[12])) * TICK_S, int(switches.split()[0])


def _since(pid: int, before: tuple[float, int], seconds: float) -> Cost:
    cpu_s, switches = _counters(pid)
    return Cost(
        pss_mb=pss_mb(pid),
        cpu_s=cpu_s - before[0],
        wakeups=switches - before[1],
        seconds=seconds,
    )


@contextmanager
def _sleeper(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
