"""The packages on a Debian of their own: installed, upgraded, removed, purged."""

from __future__ import annotations

import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import packages, rootfs
from tests.support.rootfs import System

pytestmark = [
    pytest.mark.system("debootstrap", "dpkg-deb", "rpmbuild", "rpm", "mount", "chroot"),
    pytest.mark.timeout(rootfs.MAKING_S + 300),
]

# Logs, caches and lists that every installation of any package changes.
SYSTEMS_OWN = (
    "run/",
    "proc/",
    "tmp/",
    "var/log/",
    "var/lib/dpkg/",
    "var/cache/",
    "var/lib/systemd/deb-systemd",
)
CONFIGURED = 'region = "global"\n[[sources]]\nurl = "file:///nowhere/feed"\n'


@pytest.fixture
def system() -> Iterator[System]:
    with rootfs.overlay() as made:
        yield made


def install(system: System, package: Path, *options: str) -> str:
    """Put `package` into the system; returns what dpkg said."""
    place = system.root / "run" / package.name
    shutil.copyfile(package, place)
    return system.run("dpkg", *options, "--install", f"/run/{package.name}").stdout


def configure(system: System) -> None:
    folder = system.root / "etc/holdfast"
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text(CONFIGURED)
    (folder / "root.json").write_text("{}")


def is_enabled(system: System, unit: str = "holdfast-agent.service") -> bool:
    done = system.run("systemctl", "is-enabled", unit, ok=False)
    return done.stdout.strip() == "enabled"


def units_of(system: System) -> list[str]:
    """The agent's units in it, and links to them."""
    return [path for path in system.files() if path.endswith(packages.AGENT.units)]


def test_an_installed_agent_runs_from_its_package_alone(system: System, debian: Path) -> None:
    said = install(system, debian)
    assert "root.json" in said
    assert not is_enabled(system)
    assert system.run("agentctl", "version").stdout.startswith("agentctl 0.")
    assert system.run("agentd", "--version").stdout.startswith("0.")
    status = system.run("agentctl", "status", ok=False)
    assert status.returncode == 2
    assert "systemctl start holdfast-agent" in status.stdout
    imports = "import agent.fetcher.main, agent.stager.main, sys; print(sys.executable)"
    python = "/opt/holdfast/bin/python3"
    assert system.run(python, "-I", "-c", imports).stdout.strip() == python
    assert system.run("dpkg", "--verify", "holdfast").stdout == ""


def test_byte_code_is_written_at_an_install_and_by_no_command(system: System, debian: Path) -> None:
    install(system, debian)
    modules = system.root / "opt/holdfast/lib/python3.11/site-packages/agent"
    assert len(list(modules.rglob("*.pyc"))) == len(list(modules.rglob("*.py")))
    system.run("find", "/opt/holdfast", "-name", "*.pyc", "-delete")
    for command in sorted((system.root / "opt/holdfast/bin").iterdir()):
        if not command.name.startswith("python"):
            system.run(f"/opt/holdfast/bin/{command.name}", "--help")
    assert list((system.root / "opt/holdfast").rglob("*.pyc")) == []


def test_the_fetchers_account_can_do_nothing_but_run(system: System, debian: Path) -> None:
    install(system, debian)
    account = system.run("getent", "passwd", "holdfast").stdout.strip().split(":")
    assert account[5:] == ["/nonexistent", "/usr/sbin/nologin"]
    assert 0 < int(account[2]) < 1000
    owned = system.run("find", "/etc", "/opt", "/usr", "/var", "-user", "holdfast").stdout
    assert owned == ""


def test_an_agent_that_is_configured_before_it_is_installed_is_enabled(
    system: System, debian: Path
) -> None:
    configure(system)
    said = install(system, debian, "--force-confold")
    assert "isn't started" not in said
    assert is_enabled(system)


def test_an_upgrade_keeps_state_settings_and_the_administrators_choice(
    system: System, debian: Path, tmp_path: Path
) -> None:
    configure(system)
    install(system, debian, "--force-confold")
    system.run("systemctl", "disable", "holdfast-agent.service")
    boot = system.root / "var/lib/holdfast/boot.json"
    boot.write_text("the record")
    install(system, packages.newer(debian, tmp_path))
    assert boot.read_text() == "the record"
    assert (system.root / "etc/holdfast/config.toml").read_text() == CONFIGURED
    assert not is_enabled(system)
    left = [path.name for path in (system.root / "opt").rglob("explain*")]
    assert left == []


def test_removal_keeps_state_and_settings_and_purging_leaves_nothing(
    system: System, debian: Path
) -> None:
    accounts = system.run("getent", "passwd").stdout
    before = system.files(*SYSTEMS_OWN)
    configure(system)
    install(system, debian, "--force-confold")
    (system.root / "var/lib/holdfast/boot.json").write_text("the record")
    protected = system.root / "etc/systemd/system/scanner.service.d/50-holdfast.conf"
    protected.parent.mkdir()
    protected.write_text("[Unit]\n")
    system.run("dpkg", "--remove", "holdfast")
    assert (system.root / "var/lib/holdfast/boot.json").exists()
    assert (system.root / "etc/holdfast/root.json").exists()
    assert not (system.root / "opt/holdfast").exists()
    system.run("dpkg", "--purge", "holdfast")
    assert system.files(*SYSTEMS_OWN) - before == set()
    assert system.run("getent", "passwd").stdout == accounts


def test_a_removal_disables_also_what_was_never_configured(
    system: System, debian: Path, tmp_path: Path
) -> None:
    configure(system)
    install(system, debian, "--force-confold")
    shutil.copyfile(packages.newer(debian, tmp_path), system.root / "run/newer.deb")
    system.run("dpkg", "--unpack", "/run/newer.deb")
    assert is_enabled(system)
    system.run("dpkg", "--remove", "holdfast")
    assert units_of(system) == []


def test_a_first_version_replaced_before_it_was_configured_is_enabled_too(
    system: System, debian: Path, tmp_path: Path
) -> None:
    configure(system)
    shutil.copyfile(debian, system.root / "run/first.deb")
    system.run("dpkg", "--force-confold", "--unpack", "/run/first.deb")
    install(system, packages.newer(debian, tmp_path), "--force-confold")
    assert is_enabled(system)


def lose_power(system: System) -> None:
    """What a boot leaves of /run: nothing."""
    for path in (system.root / "run").iterdir():
        path.unlink()


@pytest.mark.parametrize("before", ["nothing", "removed", "no mark"])
def test_a_first_installation_that_a_power_cut_interrupts_is_enabled_once_it_is_configured(
    system: System, debian: Path, before: str
) -> None:
    if before == "removed":
        install(system, debian)
        system.run("dpkg", "--remove", "holdfast")
    configure(system)
    shutil.copyfile(debian, system.root / "run/first.deb")
    system.run("dpkg", "--force-confold", "--unpack", "/run/first.deb")
    lose_power(system)
    if before == "no mark":
        (system.root / "var/lib/holdfast-is-new").unlink()
    system.run("dpkg", "--force-confold", "--configure", "holdfast")
    assert is_enabled(system)
    system.run("systemctl", "disable", "holdfast-agent.service")
    install(system, debian)
    assert not is_enabled(system)  # an upgrade like any other


def test_purging_empties_a_state_that_is_a_mount_point_and_says_that_it_stays(
    system: System, debian: Path, tmp_path: Path
) -> None:
    before = system.files(*SYSTEMS_OWN)
    state = system.root / "var/lib/holdfast"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", state], check=True)
    install(system, packages.without_libraries(debian, tmp_path))
    (state / "slots").mkdir()
    (state / "slots/content").write_text("a release")
    protected = system.root / "etc/systemd/system/scanner.service.d/50-holdfast.conf"
    protected.parent.mkdir()
    protected.write_text("[Unit]\n")
    said = system.run("dpkg", "--purge", "holdfast").stderr
    assert "/var/lib/holdfast stays, with 0 files in it" in said
    assert list(state.iterdir()) == []
    assert system.files(*SYSTEMS_OWN) - before == {"var/lib/holdfast"}
    assert system.run("getent", "passwd", "holdfast", ok=False).returncode == 2
    assert "holdfast" not in system.run("dpkg-query", "--show").stdout


def test_the_server_is_started_at_the_next_boot_and_its_state_is_its_own(
    system: System, server: Path, tmp_path: Path
) -> None:
    before = system.files(*SYSTEMS_OWN)
    install(system, packages.without_libraries(server, tmp_path))
    assert is_enabled(system, "holdfast-serverd.service")
    account = system.run("getent", "passwd", "holdfast-server").stdout.strip().split(":")
    assert account[5:] == ["/nonexistent", "/usr/sbin/nologin"]
    owned = system.run("find", "/etc", "/opt", "/usr", "/var", "-user", "holdfast-server").stdout
    assert owned.split() == ["/var/lib/holdfast-server"]
    state = system.root / "var/lib/holdfast-server"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    (state / "server.db").write_text("the fleet")
    system.run("dpkg", "--remove", "holdfast-server")
    assert (state / "server.db").exists()
    assert (system.root / "etc/holdfast/server.toml").exists()
    assert not (system.root / "opt/holdfast-server").exists()
    system.run("dpkg", "--purge", "holdfast-server")
    assert system.files(*SYSTEMS_OWN) - before == set()


def test_agent_and_server_of_one_machine_leave_each_other_alone(
    system: System, debian: Path, server: Path, tmp_path: Path
) -> None:
    install(system, debian)
    root = system.root / "etc/holdfast/root.json"
    root.write_text("{}")
    agent_alone = system.files(*SYSTEMS_OWN)
    install(system, packages.without_libraries(server, tmp_path))
    server_too = system.files(*SYSTEMS_OWN) - agent_alone

    system.run("dpkg", "--purge", "holdfast")
    assert server_too - system.files(*SYSTEMS_OWN) == set()
    assert root.exists()  # it may be what the server trusts
    assert not root.with_name("config.toml").exists()
    install(system, debian)
    system.run("dpkg", "--purge", "holdfast-server")
    assert system.files(*SYSTEMS_OWN) == agent_alone


def test_the_rpm_installs_runs_and_leaves(system: System, fedora: Path) -> None:
    rpm = ["rpm", "--root", str(system.root), "--nodeps"]
    configure(system)
    subprocess.run([*rpm, "--install", str(fedora)], check=True, capture_output=True)
    assert is_enabled(system)
    assert system.run("agentctl", "version").stdout.startswith("agentctl 0.")
    assert system.run("getent", "passwd", "holdfast").returncode == 0
    compiled = list((system.root / "opt/holdfast").rglob("*.pyc"))
    assert compiled
    subprocess.run([*rpm, "--erase", "holdfast"], check=True, capture_output=True)
    assert not (system.root / "opt/holdfast").exists()
    assert not (system.root / "usr/bin/agentctl").is_symlink()
    assert units_of(system) == []


def test_a_first_rpm_that_a_power_cut_interrupts_is_enabled_once_it_is_installed_again(
    system: System, fedora: Path
) -> None:
    rpm = ["rpm", "--root", str(system.root), "--nodeps"]
    configure(system)
    command = [*rpm, "--install", "--noposttrans", str(fedora)]
    subprocess.run(command, check=True, capture_output=True)
    lose_power(system)
    again = [*rpm, "--upgrade", "--replacepkgs", str(fedora)]
    subprocess.run(again, check=True, capture_output=True)
    assert is_enabled(system)
    system.run("systemctl", "disable", "holdfast-agent.service")
    subprocess.run(again, check=True, capture_output=True)
    assert not is_enabled(system)
