"""The plug is pulled in a trial: the boot guard has gone back before the engine starts.

None of these boots has a source: going back needs none.
"""

from __future__ import annotations

import shutil

from tests.system.systemd.machine import ENGINE, UNITS, Machine

GUARD, AGENT, _ = UNITS


def test_a_power_cut_in_a_trial_brings_the_prior_release_back_before_the_engine_starts(
    machine: Machine,
) -> None:
    guest = machine.guest
    before = guest.status()["release"]
    release = machine.try_out()
    guest.cut()
    guest.boot(feed=False)
    assert machine.engine_log()[0] == f"start good {before}"
    end = machine.wait_for_end(release)
    assert (end["outcome"], end["reason"]) == ("reverted", "tries_used_up")
    assert guest.status()["release"] == before
    assert started(machine, GUARD) < started(machine, ENGINE)
    assert guest.unit(AGENT)["ActiveState"] == "active"


def started(machine: Machine, unit: str) -> int:
    """Microseconds after the boot at which a unit's main process was started."""
    told = machine.guest.unit(unit, "ExecMainStartTimestampMonotonic")
    return int(told["ExecMainStartTimestampMonotonic"])


def test_an_orderly_reboot_in_a_trial_goes_on_with_it(machine: Machine) -> None:
    guest = machine.guest
    release = machine.try_out()
    guest.shut_down()
    guest.boot(feed=False)
    assert machine.engine_log()[0] == f"start good {release}"
    status = guest.wait_for(lambda seen: seen["trial"])
    assert status["trial"]["release"] == release
    guest.run("agentctl", "rollback")
    assert machine.wait_for_end(release)["outcome"] == "reverted"


def test_an_engine_that_hangs_the_boot_is_gone_after_as_many_boots_as_it_has_tries(
    machine: Machine,
) -> None:
    guest = machine.guest
    before = guest.status()["release"]
    release = machine.try_out("block", tries=2)
    guest.cut()
    guest.boot(feed=False, wait=False)
    guest.wait_until(machine.engine_log, "the engine has been started")
    assert machine.engine_log() == [f"start block {release}"]
    assert guest.unit(ENGINE)["ActiveState"] == "activating"
    assert guest.unit("sysinit.target")["ActiveState"] == "inactive"
    assert guest.main_pid(AGENT) == 0  # the boot hangs: nobody watches
    guest.cut()
    guest.boot(feed=False)
    assert machine.engine_log()[0] == f"start good {before}"
    end = machine.wait_for_end(release)
    assert (end["outcome"], end["reason"]) == ("reverted", "tries_used_up")
    assert guest.status()["release"] == before


def test_a_boot_guard_that_no_sandbox_can_be_made_for_works_without_one(machine: Machine) -> None:
    guest = machine.guest
    before = guest.status()["release"]
    release = machine.try_out()
    guest.cut()
    drop_in = guest.disk / f"etc/systemd/system/{GUARD}.d/sandbox.conf"
    drop_in.parent.mkdir()
    try:
        drop_in.write_text("[Service]\nSystemCallFilter=~execve\n")
        guest.boot(feed=False)
        guard = guest.unit(GUARD, "Result", "ExecMainStatus")
        assert guard == {"Result": "exit-code", "ExecMainStatus": "203"}  # EXEC
        assert any(
            said.get("event") == "boot_counted" and said["phase"] == "reverting"
            for said in guest.said(GUARD)
        )
        assert machine.engine_log()[0] == f"start good {before}"
        end = machine.wait_for_end(release)
        assert (end["outcome"], end["reason"]) == ("reverted", "tries_used_up")
    finally:
        shutil.rmtree(drop_in.parent)
    guest.run("systemctl", "daemon-reload")
    guest.run("systemctl", "restart", GUARD)


def test_emptying_tmp_does_not_keep_the_boot_guard_from_its_work(machine: Machine) -> None:
    """As systemd-tmpfiles-setup does at a boot, just when the guard is started."""
    guest = machine.guest
    emptying = "while :; do find /tmp -mindepth 1 -delete; done 2>/dev/null"
    guest.run("systemctl", "stop", AGENT)
    guest.run("systemd-run", "--unit=emptying", "sh", "-c", emptying)
    try:
        for _ in range(10):
            guest.run("systemctl", "reset-failed", GUARD)  # there is a limit on starts
            guest.run("systemctl", "restart", GUARD)
            guard = guest.unit(GUARD, "Result", "ExecMainStatus")
            assert guard == {"Result": "success", "ExecMainStatus": "0"}, guest.journal(GUARD)
    finally:
        guest.run("systemctl", "stop", "emptying")
        guest.run("systemctl", "start", AGENT)
