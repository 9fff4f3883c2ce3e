"""A release that takes the machine's breath away is reverted all the same.

Agent and engine share a box (tests.support.boxes) of limited processes, memory
and CPU. Once it has loaded the release on trial, the engine takes all there is
of one of them, in real: it pins every core, bombs with forks, fills the process
table, or eats memory until the kernel kills. The hook has succeeded by then,
and is a signal, which needs no process: it is the watching that ends the trial.
How long the way back took is printed at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import boxes, pressing
from tests.support.boxes import TALLY, Box, Limits
from tests.support.endpoint import Endpoint
from tests.support.vendor import Vendor

PATTERN = "virus-pattern"
LIMIT_S = 60.0
HEALTH = {
    "warmup_s": 1.0,
    "window_s": 2.0,
    "baseline_s": 2.0,
    "probation_s": 30.0,
    "memory_floor_bytes": 1 << 30,  # more than the short box has: the kernel kills first
}
# Of the processors all but a little, by which the test gets through to look at it.
# Memory is what its own case runs out of; as many processes as there may be need less.
LIMITS = Limits(pids=120, memory_bytes=2 << 30, cores=0.97 * (os.cpu_count() or 1))
SHORT_OF_MEMORY = replace(LIMITS, memory_bytes=400 << 20)
# The guardian's unit has it killed last (OOMScoreAdjust=). Lowering takes a capability
# that root may lack here; raising the engine's comes to the same.
KILLED_FIRST = ("sh", "-c", 'echo 900 > /proc/self/oom_score_adj; exec "$@"', "sh")
ENGINE = Path(__file__).with_name("engine.py")

pytestmark = [pytest.mark.system, pytest.mark.alone, pytest.mark.timeout(240)]


@pytest.fixture
def box(word: str) -> Iterator[Box]:
    if why := boxes.missing():
        pytest.skip(why)
    with Box(SHORT_OF_MEMORY if word == "hogs" else LIMITS) as made:
        yield made


@pytest.fixture
def pressed(tmp_path: Path, box: Box) -> Iterator[tuple[Vendor, Endpoint]]:
    """A machine on r171 with a calm engine, and who may ship it something else."""
    vendor = Vendor(tmp_path / "vendor")
    vendor.ship("r171", {PATTERN: ("171", b"calm" * 1000)})
    pid_file = tmp_path / "engine.pid"
    extra = (
        f'[[watch]]\nname = "engine"\npid_file = "{pid_file}"\n'
        f'[[activation]]\nname = "reload"\n'
        f'pid_file = "{pid_file}"\nsignal = "HUP"\n'
    )
    settings = {"root": vendor.root, "extra": extra, "at_start": False}
    endpoint = Endpoint(tmp_path / "endpoint", url=vendor.url, **settings)
    content = endpoint.layout.current / PATTERN / f"{PATTERN}.dat"
    program = [sys.executable, ENGINE, content, pid_file, pressing.__file__]
    unmeasured = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    engine = subprocess.Popen([*box.prefix, *KILLED_FIRST, *program], env=unmeasured)
    try:
        with endpoint.running(*box.prefix):
            endpoint.wait_for(lambda status: status["fetcher"]["running"])
            endpoint.ctl("update", check=True)
            endpoint.wait_for_release("r171")
        endpoint.configure(vendor.url, extra=extra, health=HEALTH, at_start=False)
        with endpoint.running(*box.prefix):
            endpoint.wait_for(lambda status: status["fetcher"]["running"])
            yield vendor, endpoint
    finally:
        engine.kill()
        engine.wait()


@pytest.mark.parametrize(
    ("word", "what", "reasons"),
    [
        ("spin", "every core pinned", {"cpu_pinned"}),
        ("bomb", "a fork bomb", {"cpu_pinned"}),
        ("full", "a full process table", {"cpu_pinned"}),
        ("hogs", "memory until the kernel kills", {"crash_loop"}),
    ],
)
def test_a_release_that_presses_the_machine_is_reverted(
    word: str,
    what: str,
    reasons: set[str],
    pressed: tuple[Vendor, Endpoint],
    box: Box,
    record_property: Callable[[str, object], None],
) -> None:
    vendor, endpoint = pressed
    assert endpoint.process is not None
    guardian = endpoint.process.pid
    vendor.ship("r175", {PATTERN: ("175", word.encode() + b"175" * 1000)})
    endpoint.ctl("update", "--no-wait", check=True)
    endpoint.wait_for(
        lambda _: any(item["release"] == "r175" for item in endpoint.history()), seconds=150
    )
    (last,) = (item for item in endpoint.history() if item["release"] == "r175")
    assert last["outcome"] == "reverted", last
    assert last["reason"] in reasons, last
    assert endpoint.slot_problems() == []
    assert endpoint.status()["release"] == "r171"
    refused = box.refused()
    assert guardian in box.processes, f"the guardian was another one at the end: {refused}"
    if word in {"bomb", "full"}:
        assert refused["forks refused"], "the process table was never full"
    assert bool(refused["killed for memory"]) == (word == "hogs"), refused
    seconds = last["ended"] - last["flipped"]
    record_property(TALLY, (what, seconds, last["reason"]))
    assert seconds <= LIMIT_S, last
