"""A real engine on a machine whose every core other programs keep busy."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.config import Watch
from agent.guardian import verdict
from agent.guardian.health import Prober
from agent.guardian.verdict import Outcome, Policy, Reason, Verdict
from tests.support.engines import SPIN, pid_file, python

LOOK_S = 0.25
POLICY = Policy(warmup_s=1.0, window_s=2.0, probation_s=600.0, cpu_floor_share=0.4)
ENGINE = """
import os, sys, time
while not os.path.exists(sys.argv[1]):
    time.sleep(0.02)
while True:
    pass
"""


@contextmanager
def _hogs() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(2 * (os.cpu_count() or 1)):
            stack.enter_context(python(SPIN))
        yield


def _watch_over(prober: Prober, seconds: float) -> list[verdict.Sample]:
    end, found = time.monotonic() + seconds, []
    while time.monotonic() < end:
        found.append(prober.sample(time.monotonic()))
        time.sleep(LOOK_S)
    return found


def _try_out(prober: Prober, known: verdict.Baseline, seconds: float) -> tuple[Verdict, float]:
    """The verdict after at most `seconds`, and when it came."""
    watching, flipped_at = verdict.begin(known), time.monotonic()
    while True:
        now = time.monotonic()
        watching = verdict.observe(
            watching, prober.sample(now), POLICY, known, activation_done_at=flipped_at
        )
        found = verdict.judge(watching, POLICY, known)
        if found.outcome is not Outcome.WAIT or now - flipped_at > seconds:
            return found, time.monotonic() - flipped_at
        time.sleep(LOOK_S)


@contextmanager
def _engine(folder: Path) -> Iterator[tuple[Prober, Path]]:
    """A quiet engine that spins once the file is there, and its prober."""
    trigger = folder / "spin"
    with python(ENGINE, str(trigger)) as engine:
        watch = Watch(name="engine", pid_file=pid_file(folder, engine.pid))
        prober = Prober([watch], own_pids=())
        prober.start()
        yield prober, trigger
        prober.close()


def test_an_engine_that_newly_spins_on_a_pinned_machine_is_reverted_in_time(
    tmp_path: Path,
) -> None:
    with _engine(tmp_path) as (prober, trigger), _hogs():
        known = verdict.measure(_watch_over(prober, 1.5))
        trigger.touch()
        found, after_s = _try_out(prober, known, 30)
    assert (found.outcome, found.reason) == (Outcome.REVERT, Reason.CPU_PINNED), found
    assert after_s <= POLICY.warmup_s + POLICY.window_s + 5, found


@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < (os.cpu_count() or 1),
    reason="not all of this machine's processors can be pinned from here",
)
def test_a_quiet_engine_on_a_machine_that_others_pin_stays_in_trial(tmp_path: Path) -> None:
    with _engine(tmp_path) as (prober, _):
        known = verdict.measure(_watch_over(prober, 1.5))
        with _hogs():
            found, _ = _try_out(prober, known, 5)
    assert (found.outcome, found.reason) == (Outcome.WAIT, Reason.MACHINE_PRESSURE), found
