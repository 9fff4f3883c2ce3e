"""The Security Server's package, in a system that runs, beside an agent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import packages
from tests.support.guest import Guest
from tests.system.systemd.machine import UNITS, Machine

SERVER = "holdfast-serverd.service"
STATE = "/var/lib/holdfast-server"
# What dpkg and systemd keep of anything that was ever there.
SYSTEMS_OWN = ("/var/log/", "/var/cache/", "/var/lib/dpkg/info/", "/var/tmp/")
ASK = f"""
import ssl, sys, urllib.request
trust = ssl.create_default_context(cafile="{STATE}/tls/ca.pem")
with urllib.request.urlopen("https://127.0.0.1:8443" + sys.argv[1], context=trust) as answer:
    print(answer.read().decode())
"""


@pytest.fixture
def guest(machine: Machine) -> Iterator[Guest]:
    """A machine with an agent, on which no server is left behind."""
    yield machine.guest
    machine.guest.run("dpkg", "--purge", "holdfast-server", ok=False)


def asked(guest: Guest, path: str) -> str:
    """What the server in the guest answers over TLS, its own authority trusted."""
    return guest.run("python3", "-I", "-c", ASK, path).stdout


def test_a_server_runs_once_it_is_installed_and_until_it_is_purged(
    guest: Guest, machine: Machine, server: Path, tmp_path: Path
) -> None:
    said = machine.install(server)
    assert f"journalctl --unit {SERVER} --grep setup" in said
    assert asked(guest, "/healthz")
    assert guest.unit(SERVER)["UnitFileState"] == "enabled"
    grep = ("journalctl", "--quiet", "--output=cat", f"--unit={SERVER}", "--grep=setup")
    assert "https://" in guest.run(*grep).stdout
    done = guest.run("serverctl", "status", "--json", ok=False)
    assert done.stdout, done.stderr
    assert json.loads(done.stdout)["version"]
    authority = guest.file(f"{STATE}/tls/ca.pem").read_text()

    guest.run("systemctl", "start", SERVER)
    first = guest.main_pid(SERVER)
    machine.install(packages.newer(server, tmp_path, without="rich/__main__.py"))
    assert guest.main_pid(SERVER) not in {0, first}
    assert asked(guest, "/healthz")
    assert guest.file(f"{STATE}/tls/ca.pem").read_text() == authority

    guest.run("dpkg", "--purge", "holdfast-server")
    found = guest.run("find", "/", "-xdev", "-iname", "*holdfast-server*").stdout.splitlines()
    assert [path for path in found if not path.startswith(SYSTEMS_OWN)] == []
    assert guest.processes("serverctl") == []
    assert guest.unit(SERVER)["LoadState"] == "not-found"
    assert guest.run("systemctl", "is-active", *UNITS).stdout.split() == ["active"] * len(UNITS)
    assert guest.file("/etc/holdfast/root.json").exists()
