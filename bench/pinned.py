"""How long from flip to completed revert when other programs have every core.

Twice as many busy processes as cores run from before the flip to the end. The
protected engine begins to spin when the bad release is activated. Beside it
the same load with an engine that stays calm: there nothing may be reverted.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from agent.guardian.policy import DEFAULTS
from bench import machine
from bench.figures import Figure, Section
from tests.support.endpoint import Endpoint

GRACE_S = 5.0  # the goal's, beyond warm-up and window
SPIN = "while True: pass"
ENGINE = """
import os, sys, time
from pathlib import Path
content, pid_file = Path(sys.argv[1]), Path(sys.argv[2])
pid_file.write_text(str(os.getpid()))
while True:
    is_bad = content.exists() and content.read_bytes().startswith(b"spin")
    end = time.monotonic() + 0.2
    while is_bad and time.monotonic() < end:
        pass
    if not is_bad:
        time.sleep(0.05)
"""


@dataclass(frozen=True)
class Windows:
    """The part of the policy that the time to a revert depends on."""

    name: str
    warmup_s: float
    window_s: float
    baseline_s: float

    @property
    def limit_s(self) -> float:
        return self.warmup_s + self.window_s + GRACE_S

    @property
    def health(self) -> dict[str, float]:
        return {
            "warmup_s": self.warmup_s,
            "window_s": self.window_s,
            "baseline_s": self.baseline_s,
            "probation_s": self.window_s,
        }

    def __str__(self) -> str:
        return f"{self.name} windows (warm-up {self.warmup_s:g} s, window {self.window_s:g} s)"


SHORT = Windows("short", 2.0, 5.0, 5.0)
DEFAULT = Windows("default", DEFAULTS.warmup_s, DEFAULTS.window_s, DEFAULTS.baseline_s)


def run(*, quick: bool) -> Section:
    """Reverts with short windows and with the defaults; then the calm engine."""
    cases = [(SHORT, 1)] if quick else [(SHORT, 3), (DEFAULT, 1)]
    figures = [_calm_figure(SHORT)]
    figures += [_revert_figure(windows, times=times) for windows, times in cases]
    hogs = 2 * (os.cpu_count() or 1)
    return Section(
        title="A revert on a machine without a free core",
        how=f"{hogs} processes of `python -c '{SPIN}'` from before the flip, real agentd and "
        f"engine, {'as root' if os.geteuid() == 0 else 'without root'}. The time is from the "
        "flip to the attempt's end in the history: link, settings, hooks and quarantine are "
        "done by then. The peer is the same update without the other programs.",
        figures=tuple(figures),
    )


def _revert_figure(windows: Windows, *, times: int) -> Figure:
    free = _seconds_to_revert(windows, hogs=0)
    hogs = 2 * (os.cpu_count() or 1)
    pinned = max(_seconds_to_revert(windows, hogs=hogs) for _ in range(times))
    return Figure(
        f"flip to completed revert, {windows}, longest of {times}",
        f"{pinned:.1f} s",
        f"{free:.1f} s (without them)",
        ratio=pinned / free,
        goal=f"at most {windows.limit_s:g} s",
        met=pinned <= windows.limit_s,
    )


def _calm_figure(windows: Windows) -> Figure:
    with _machine(windows, hogs=2 * (os.cpu_count() or 1)) as (endpoint, ship, relieve):
        ship(b"calm")
        endpoint.ctl("update", "--no-wait", check=True)
        flipped = endpoint.wait_for(lambda status: status["state"]["name"] == "trial", seconds=120)
        found = _watch(endpoint, 4 * windows.limit_s)
        seconds = found["now"] - flipped["now"]
        shown = f"{found['state']['name']} [{found['state']['reason']}] after {seconds:.0f} s"
        relieve()
        last = _ended(endpoint, after=flipped["now"])
    return Figure(
        f"a calm engine under the same load, {windows}",
        f"{shown}; {last['outcome']} once the load was gone",
        goal="no revert",
        met=found["state"]["name"] != "reverted" and last["outcome"] == "committed",
    )


def _seconds_to_revert(windows: Windows, *, hogs: int) -> float:
    with _machine(windows, hogs=hogs) as (endpoint, ship, _):
        began = time.time()
        ship(b"spin")
        endpoint.ctl("update", "--no-wait", check=True)
        last = _ended(endpoint, after=began)
    assert last["outcome"] == "reverted", last
    return float(last["ended"] - last["flipped"])


def _ended(endpoint: Endpoint, *, after: float) -> dict[str, Any]:
    """The history's line of the attempt that ended since."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        for item in endpoint.history()[-1:]:
            if item["ended"] >= after:
                return item
        time.sleep(0.1)
    raise AssertionError(f"no attempt ended: {endpoint.log.read_text()[-4000:]}")


def _watch(endpoint: Endpoint, seconds: float) -> dict[str, Any]:
    """The status after `seconds`, or as soon as the trial is over."""
    end = time.monotonic() + seconds
    while True:
        status = endpoint.status()
        if status["state"]["name"] != "trial" or time.monotonic() > end:
            return status
        time.sleep(0.5)


@contextmanager
def _machine(
    windows: Windows, *, hogs: int
) -> Iterator[tuple[Endpoint, Callable[[bytes], None], Callable[[], None]]]:
    """A guarded engine on r171 beside so many hogs; how to ship the next release and to
    end the load."""
    with machine.folder() as place, ExitStack() as stack:
        desk = machine.vendor(place, b"calm" * 1000)
        pid_file = place / "engine.pid"
        content = place / "endpoint/state/current" / machine.PATTERN / f"{machine.PATTERN}.dat"
        stack.enter_context(
            _running([sys.executable, "-c", ENGINE, str(content), str(pid_file)], count=1)
        )
        watch = f'[[watch]]\nname = "engine"\npid_file = "{pid_file}"\n'
        with machine.installed(
            place / "endpoint", url=desk.url, root=desk.root, extra=watch
        ) as endpoint:
            pass
        endpoint.configure(desk.url, extra=watch, health=windows.health, at_start=False)
        stack.enter_context(endpoint.running())
        endpoint.wait_for(lambda status: not status.get("verifying"))
        load = stack.enter_context(_running([sys.executable, "-c", SPIN], count=hogs))

        def ship(start: bytes) -> None:
            desk.ship("r175", {machine.PATTERN: ("175", start + b"175" * 1000)})

        yield endpoint, ship, lambda: _kill(load)


@contextmanager
def _running(command: list[str], *, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield processes
    finally:
        _kill(processes)


def _kill(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()
