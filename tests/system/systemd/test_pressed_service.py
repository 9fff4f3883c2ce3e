"""A release that takes the guest's breath away is reverted by the installed service.

The guest runs in a box (tests.support.boxes): engine, systemd and the agent's units
share its processes, memory and CPU, and the machine around it stays alive. How long
the way back took is printed at the end.

All but the deaf one end by themselves once their pattern is another one: while the
process table is full, the revert can't start systemctl to tell them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.support import boxes
from tests.support.boxes import TALLY, Box, Limits
from tests.system.systemd.machine import UNITS, Machine

AGENT = UNITS[1]
LIMITS = Limits(pids=200, memory_bytes=600 << 20, cores=0.97 * (os.cpu_count() or 1))
LIMIT_S = 60.0
HEALTH = {
    "probation_s": 600.0,
    "cpu_floor_share": 0.5,  # one that fills memory works a third of the time
    "memory_floor_bytes": 1 << 30,  # more than the box has: the kernel kills first
}

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def box(_guest: Machine) -> Iterator[Box]:
    if why := boxes.missing():
        pytest.skip(why)
    with Box(LIMITS) as made:
        yield made
        _guest.guest.cut()


@pytest.fixture
def boxed(_guest: Machine, box: Box) -> Machine:
    """The machine, at rest, with its guest in the box."""
    if not _guest.guest.is_in(box):
        _guest.guest.cut()
        _guest.guest.boot(box=box)
    _guest.make_ready()
    assert _guest.guest.is_in(box), "what presses it would press the machine around it"
    return _guest


@pytest.mark.parametrize(
    ("word", "what", "reasons"),
    [
        ("spin", "every core of a guest pinned", {"cpu_pinned"}),
        ("bomb", "a fork bomb in a guest", {"cpu_pinned"}),
        ("deaf", "one in a guest that only ends when it is ended", {"cpu_pinned"}),
        # Killed and started again: it is seen to end, or not to be there.
        (
            "hogs",
            "a guest's memory until the kernel kills",
            {"crash_loop", "process_missing"},
        ),
    ],
)
def test_a_release_that_presses_the_guest_is_reverted_by_the_installed_service(
    word: str,
    what: str,
    reasons: set[str],
    boxed: Machine,
    box: Box,
    record_property: Callable[[str, object], None],
) -> None:
    guest = boxed.guest
    before, guardian = guest.status()["release"], guest.main_pid(AGENT)
    refused = box.refused()
    bad = boxed.ship(word, health=HEALTH)
    boxed.update()
    end = boxed.wait_for_end(bad)
    assert end["outcome"] == "reverted", end
    assert end["reason"] in reasons, end
    assert guest.status()["release"] == before
    assert guest.main_pid(AGENT) == guardian, "the guardian was another one at the end"
    guest.wait_until(
        lambda: boxed.engine_log()[-1].endswith(f"good {before}"), "the engine is back"
    )
    now = box.refused()
    if word in {"bomb", "deaf"}:
        assert now["forks refused"] > refused["forks refused"], "it never was full"
    if word == "hogs":
        assert now["killed for memory"] > refused["killed for memory"], "nothing was killed"
    if word == "deaf":
        assert any(said.get("event") == "engine_ended" for said in guest.said(AGENT))
    seconds = end["ended"] - end["flipped"]
    record_property(TALLY, (what, seconds, end["reason"]))
    assert seconds <= LIMIT_S, end
