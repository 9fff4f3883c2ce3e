"""A guardian that hangs: systemd ends it, starts another, and a hang counts in a trial."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.guardian.lifecycle import FAULTS_ALLOWED
from agent.slots import record as records
from tests.system.systemd.machine import Machine, on_trial

AGENT = "holdfast-agent.service"
# The unit's minute, shortened; on a loaded machine a guardian may be late by seconds.
HASTE = "[Service]\nWatchdogSec=8\nTimeoutAbortSec=3\nRestartSec=1\nTimeoutStartSec=12\n"
# Python loads it in each of the package's processes; /run/hang says where agentd is to spin.
TRAP = """\
import sys
from pathlib import Path

def set_trap():
    from agent.guardian.guardian import Guardian
    from agent.loop import Loop
    start, turn = Guardian.start, Loop.turn

    def spin(where):
        while Path("/run/hang").exists() and where in Path("/run/hang").read_text():
            pass

    def spinning_start(self):
        spin("start")
        start(self)

    def spinning_turn(self, *given):
        spin("turn")
        return turn(self, *given)

    Guardian.start, Loop.turn = spinning_start, spinning_turn

if any(word.endswith("/agentd") for word in sys.orig_argv):
    set_trap()
"""


@pytest.fixture
def hasty(machine: Machine) -> Iterator[Machine]:
    """The machine with a short watchdog."""
    guest = machine.guest
    drop_in = guest.disk / f"etc/systemd/system/{AGENT}.d/haste.conf"
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text(HASTE)
    renew(machine)
    yield machine
    drop_in.unlink()
    renew(machine)


@pytest.fixture
def trap(hasty: Machine) -> Iterator[Path]:
    """A file that makes the guardian's loop spin for as long as it says `start` or `turn`."""
    (modules,) = hasty.guest.disk.glob("opt/holdfast/lib/python3*/site-packages")
    (modules / "trap.py").write_text(TRAP)
    (modules / "trap.pth").write_text("import trap\n")
    renew(hasty)
    said = hasty.guest.file("/run/hang")
    yield said
    said.unlink(missing_ok=True)
    for name in ("trap.pth", "trap.py"):
        (modules / name).unlink()


def renew(machine: Machine) -> None:
    machine.guest.run("systemctl", "daemon-reload")
    machine.guest.run("systemctl", "restart", AGENT)


def hang(machine: Machine) -> None:
    """Stop the guardian where it is, until systemd has put another in its place."""
    guest = machine.guest
    guest.wait_until(lambda: guest.main_pid(AGENT), "a guardian runs")
    stopped = guest.main_pid(AGENT)
    guest.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", AGENT)
    guest.wait_until(lambda: guest.main_pid(AGENT) not in {0, stopped}, "another guardian runs")


def faults(machine: Machine) -> int:
    return records.load(machine.guest.layout.boot_record).faults


def test_a_guardian_that_hangs_is_replaced_and_its_trial_is_left_when_it_hangs_each_time(
    hasty: Machine,
) -> None:
    guest = hasty.guest
    before = guest.status()["release"]
    release = hasty.try_out()
    for count in range(1, FAULTS_ALLOWED + 1):
        hang(hasty)
        assert faults(hasty) == count
        guest.wait_for(lambda seen: on_trial(seen) == release)
    assert "watchdog" in guest.run("journalctl", "--no-pager", "-u", AGENT).stdout.lower()
    hang(hasty)
    end = hasty.wait_for_end(release)
    assert (end["outcome"], end["reason"]) == ("reverted", "guardian_faults")
    assert guest.status()["release"] == before
    guest.wait_until(
        lambda: hasty.engine_log()[-1] == f"reload good {before}", "the engine is back"
    )


def test_a_guardian_that_is_busy_for_ever_prints_where(hasty: Machine, trap: Path) -> None:
    guest = hasty.guest
    guest.wait_until(lambda: guest.main_pid(AGENT), "a guardian runs")
    spinning = guest.main_pid(AGENT)
    trap.write_text("turn")
    guest.wait_until(lambda: guest.main_pid(AGENT) != spinning, "systemd has ended it")
    trap.unlink()
    guest.wait_until(
        lambda: "in run" in guest.journal(AGENT).partition("Current thread")[2], "it said where"
    )
    said = guest.journal(AGENT)
    assert "Fatal Python error: Aborted" in said
    trace = said[said.index("Current thread") :]
    assert "in spin" in trace
    assert "in run" in trace


def test_a_guardian_that_hangs_before_it_is_ready_is_counted_and_the_third_reverts(
    hasty: Machine, trap: Path
) -> None:
    guest = hasty.guest
    before = guest.status()["release"]
    release = hasty.try_out()
    trap.write_text("start")
    guest.run("systemctl", "restart", "--no-block", AGENT)
    for count in range(1, FAULTS_ALLOWED + 2):
        guest.wait_until(lambda count=count: faults(hasty) == count, f"hang {count} is counted")
    trap.unlink()
    end = hasty.wait_for_end(release)
    assert (end["outcome"], end["reason"]) == ("reverted", "guardian_faults")
    assert guest.status()["release"] == before
    assert "in spinning_start" in guest.journal(AGENT, lines=400)
