"""A guardian that hangs: systemd ends it, starts another, and a hang counts in a trial."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.guardian.lifecycle import FAULTS_ALLOWED
from agent.slots import record as records
from tests.system.systemd.machine import Machine, on_trial

AGENT = "holdfast-agent.service"
# The unit's minute, shortened; on a loaded machine a guardian may be late by seconds.
HASTE = "[Service]\nWatchdogSec=8\nTimeoutAbortSec=1\nRestartSec=1\n"


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
