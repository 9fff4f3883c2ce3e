"""The package in a system that runs: upgrades, removals that dpkg takes back, a purge."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import packages
from tests.system.systemd.machine import ENGINE, UNITS, Machine, on_trial

BOOT_GUARD, AGENT, FETCHER = UNITS
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


@contextmanager
def drop_in(machine: Machine, text: str) -> Iterator[None]:
    """A change of the agent's unit, taken back in the end."""
    path = machine.guest.disk / f"etc/systemd/system/{AGENT}.d/test.conf"
    path.parent.mkdir()
    path.write_text(text)
    machine.guest.run("systemctl", "daemon-reload")
    try:
        yield
    finally:
        path.unlink()
        path.parent.rmdir()
        machine.guest.run("systemctl", "daemon-reload")


def wait_for_state(machine: Machine, state: str, sub_state: str) -> None:
    def is_so() -> bool:
        unit = machine.guest.unit(AGENT, "ActiveState", "SubState")
        return (unit["ActiveState"], unit["SubState"]) == (state, sub_state)

    machine.guest.wait_until(is_so, f"the agent is {state} ({sub_state})")


def test_a_guardian_between_two_crashes_is_stopped_for_an_upgrade_and_started_after_it(
    machine: Machine, tmp_path: Path
) -> None:
    guest = machine.guest

    def tell(tree: Path) -> None:
        script = tree / "DEBIAN/preinst"
        asked = f"systemctl show --property=ActiveState --value {AGENT}"
        script.write_text(f"{script.read_text()}\n{asked} >/run/while-files-change\n")

    package = packages.changed(machine.package, tmp_path / "telling.deb", tell)
    with drop_in(machine, "[Service]\nRestartSec=1h\n"):
        guest.run("systemctl", "kill", "--signal=KILL", AGENT)
        wait_for_state(machine, "activating", "auto-restart")
        machine.install(package)
        assert guest.file("/run/while-files-change").read_text() == "inactive\n"
        machine.wait_for_units()


@pytest.mark.parametrize(("choice", "after"), [("enable", "active"), ("disable", "failed")])
def test_an_agent_that_gave_up_is_started_by_an_upgrade_if_it_is_enabled(
    machine: Machine, choice: str, after: str
) -> None:
    guest = machine.guest
    settings = guest.disk / "etc/holdfast/config.toml"
    settings.write_text("what no version reads")
    guest.run("systemctl", choice, AGENT)
    try:
        guest.run("systemctl", "restart", AGENT, ok=False)
        wait_for_state(machine, "failed", "failed")
        assert guest.unit(AGENT)["ExecMainStatus"] == "78"
        machine.configure()  # in the place of a version that can read it
        machine.install(machine.package)
        unit = guest.unit(AGENT, "ActiveState", "UnitFileState")
        assert unit == {"ActiveState": after, "UnitFileState": f"{choice}d"}
    finally:
        machine.configure()
        guest.run("systemctl", "enable", "--now", AGENT)


def states(machine: Machine) -> dict[str, tuple[str, str]]:
    """Of each unit: whether it runs, and whether it is enabled."""
    asked = "ActiveState", "UnitFileState"
    units = {name: machine.guest.unit(name, *asked) for name in UNITS}
    return {name: (it["ActiveState"], it["UnitFileState"]) for name, it in units.items()}


def test_a_removal_that_fails_leaves_the_agent_as_it_was(machine: Machine) -> None:
    guest = machine.guest
    machine.wait_for_units()
    guest.run("systemctl", "disable", BOOT_GUARD)
    before, guardian = states(machine), guest.main_pid(AGENT)
    script = guest.disk / "var/lib/dpkg/info/holdfast.prerm"
    text = script.read_text()
    script.write_text(f"{text}\nexit 1\n")
    try:
        assert guest.run("dpkg", "--remove", "holdfast", ok=False).returncode == 1
        assert guest.main_pid(AGENT) not in {0, guardian}
        machine.wait_for_units()
        assert states(machine) == before
        assert before[BOOT_GUARD] == ("active", "disabled")
        assert list((guest.disk / "opt/holdfast").rglob("*.pyc")) != []
    finally:
        script.write_text(text)
        guest.run("systemctl", "enable", "--now", *UNITS[:2])


@pytest.mark.parametrize("back", ["aborted", "configured", "upgraded"])
def test_an_agent_deconfigured_for_another_package_runs_once_it_is_configured_again(
    machine: Machine, tmp_path: Path, back: str
) -> None:
    guest = machine.guest
    machine.wait_for_units()
    before, guardian = states(machine), guest.main_pid(AGENT)
    fate = "exit 1" if back == "aborted" else "exit 0"
    package = packages.breaking("holdfast", tmp_path / "neighbour.deb", preinst=fate)
    (guest.disk / "var/tmp/neighbour.deb").write_bytes(package.read_bytes())
    try:
        put_in = ("dpkg", "--auto-deconfigure", "--unpack", "/var/tmp/neighbour.deb")
        assert guest.run(*put_in, ok=False).returncode == (1 if back == "aborted" else 0)
        if back != "aborted":
            assert states(machine)[AGENT] == ("inactive", "enabled")
            guest.run("dpkg", "--purge", "neighbour")
        if back == "configured":
            guest.run("dpkg", "--configure", "holdfast")
        elif back == "upgraded":
            machine.install(machine.package)
        assert guest.main_pid(AGENT) not in {0, guardian}
        machine.wait_for_units()
        assert states(machine) == before
    finally:
        guest.run("dpkg", "--purge", "neighbour", ok=False)
        guest.run("dpkg", "--configure", "--pending")
        guest.run("systemctl", "enable", "--now", *UNITS[:2])


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
