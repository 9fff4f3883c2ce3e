"""The package in a system that runs: an upgrade in a trial, and a purge."""

from __future__ import annotations

from pathlib import Path

from tests.support import packages
from tests.system.systemd.machine import ENGINE, Machine, on_trial

AGENT = "holdfast-agent.service"
FETCHER = "holdfast-fetcher.service"
# What dpkg and systemd keep of anything that was ever there.
SYSTEMS_OWN = ("/var/log/", "/var/cache/", "/var/lib/dpkg/info/", "/var/tmp/")


def test_an_upgrade_replaces_the_guardian_and_the_trial_goes_on(
    machine: Machine, tmp_path: Path
) -> None:
    guest = machine.guest
    release = machine.try_out()
    guardian, engine = guest.main_pid(AGENT), guest.main_pid(ENGINE)
    machine.install(packages.newer(machine.package, tmp_path))
    assert guest.main_pid(AGENT) not in {0, guardian}
    assert guest.main_pid(ENGINE) == engine
    assert list((guest.disk / "opt/holdfast").rglob("explain.py")) == []
    guest.wait_for(lambda seen: on_trial(seen) == release)
    machine.wait_for_units()
    guest.run("agentctl", "rollback")
    assert machine.wait_for_end(release)["outcome"] == "reverted"
    machine.install(machine.package)
    assert list((guest.disk / "opt/holdfast").rglob("explain.py")) != []
    guest.wait_for(lambda seen: seen["release"])


def test_purging_an_agent_that_has_just_failed_leaves_nothing(machine: Machine) -> None:
    guest = machine.guest
    guest.run("systemctl", "kill", "--kill-whom=all", "--signal=KILL", AGENT, FETCHER)
    guest.run("dpkg", "--purge", "holdfast")
    found = guest.run("find", "/", "-xdev", "-iname", "*holdfast*").stdout.splitlines()
    assert [path for path in found if not path.startswith(SYSTEMS_OWN)] == []
    assert not guest.file("/run/holdfast").exists()
    assert guest.processes("holdfast") == []
    assert guest.run("getent", "passwd", "holdfast", ok=False).returncode == 2
    units = guest.run("systemctl", "list-units", "--all", "--plain", "holdfast-*").stdout
    assert "0 loaded units" in units
    assert "bootguard" not in guest.unit(ENGINE, "After")["After"]
    assert guest.unit(ENGINE)["ActiveState"] == "active"
