"""The Windows side, on a real Windows Python under Wine.

What Wine can't show: junctions (a stand-in names the target), renaming folders
with open files, recovery actions, pre-shutdown, the order of services, which
services one depends on, who may what with a service, two servers of one pipe,
SYSTEM and LocalService (a service is who runs Wine here).
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.slots import record as records
from agent.slots.record import Phase
from tests.support.vendor import Vendor
from tests.system.windows import wine
from tests.system.windows.wine import Wine, windows_path

pytestmark = [
    pytest.mark.system("wine"),
    pytest.mark.skipif(bool(wine.missing()), reason=wine.missing() or "-"),
    pytest.mark.timeout(900),
]

FACTS = re.findall(
    r"^def ([a-z]\w+)\(\w+: Path\) -> None",
    (Path(__file__).parent / "inside.py").read_text(),
    re.MULTILINE,
)
BASE = random.Random(171).randbytes(200_000)
CONFIG = """
state_dir = "state"
fetcher_user = ""
host_id = "test-host"
sources = [{{ url = "file:///{url}", proxy = "" }}]
check = {{ interval_s = 3600, jitter_s = 0 }}
download = {{ room_reserve_bytes = 0 }}
health = {{ warmup_s = 0.2, window_s = 1.0, probation_s = 0.5, baseline_s = 0.0 }}
[[settings]]
component = "cleanup-settings"
registry = 'HKLM\\SOFTWARE\\HoldfastTest\\Engine'
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wine]:
    made = Wine(Path(os.environ["HOLDFAST_WINE"]), tmp_path_factory.mktemp("wine") / "prefix")
    made.be_patient()
    yield made
    made.shut_down()


@pytest.fixture(scope="module")
def told(machine: Wine) -> dict[str, str]:
    """{fact: what is wrong with it}"""
    done = machine.run(str(machine.python), "-m", "tests.system.windows.inside", seconds=400)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stdout
    return {line["fact"]: line["problem"] for line in lines if "fact" in line}


@pytest.mark.parametrize("fact", FACTS)
def test_on_windows(told: dict[str, str], fact: str) -> None:
    assert told.get(fact, "it wasn't reached") == ""


class Installed:
    """The agent as a service, and its vendor."""

    def __init__(self, machine: Wine, vendor: Vendor) -> None:
        self.machine = machine
        self.vendor = vendor
        self.folder = machine.drive_c / "ProgramData" / "Holdfast"
        self.config = "C:\\ProgramData\\Holdfast\\config.toml"
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "root.json").write_bytes(vendor.root)
        url = windows_path(vendor.feed).replace("\\", "/")
        (self.folder / "config.toml").write_text(CONFIG.format(url=url))

    def ctl(self, *arguments: str) -> str:
        return self.machine.module("agent.ctl", *arguments, "--config", self.config).stdout

    def committed(self) -> str | None:
        """The release that runs, once nothing is in progress."""
        record = records.load(self.folder / "state" / "boot.json")
        held = record.content
        return held.release if held and record.phase is Phase.COMMITTED else None

    def log(self) -> str:
        return (self.folder / "log" / "agent.log").read_text()

    def wait_for_release(self, release: str, seconds: float = 240.0) -> None:
        end = time.monotonic() + seconds
        while self.committed() != release:
            assert time.monotonic() < end, self.log()
            time.sleep(0.2)

    def wait_for_state(self, name: str, state: str, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while state not in (said := self.machine.sc("query", name)):
            assert time.monotonic() < end, said
            time.sleep(0.5)


def test_a_strangers_folder_is_moved_aside_and_its_configuration_isnt_used(
    machine: Wine,
) -> None:
    folder = machine.drive_c / "ProgramData" / "Holdfast"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("")
    os.chown(folder, 12345, -1)  # Wine's owner of it is then somebody else
    done = machine.module("service.windows", "install")
    (aside,) = folder.parent.glob("Holdfast.untrusted-*")
    assert (aside / "config.toml").exists()
    assert "wasn't administration's" in done.stdout
    assert done.returncode == 1, done.stdout
    assert list(folder.iterdir()) == []
    assert "STATE" not in machine.sc("query", "HoldfastAgent")
    folder.rmdir()


def test_a_folder_with_other_files_keeps_its_rights(machine: Wine) -> None:
    folder = machine.drive_c / "Scanner"
    folder.mkdir()
    for name in ("holdfast.toml", "scanner.ini"):
        (folder / name).write_text("")
    done = machine.module("service.windows", "install", "--config", "C:\\Scanner\\holdfast.toml")
    assert done.returncode == 1
    assert "scanner.ini too" in done.stdout
    assert "a folder of its own" in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["holdfast.toml", "scanner.ini"]
    assert "STATE" not in machine.sc("query", "HoldfastAgent")


def test_a_service_installs_updates_reverts_and_stops(machine: Wine, tmp_path: Path) -> None:
    vendor = Vendor(tmp_path / "vendor")
    kinds = {"cleanup-settings": "settings"}
    calm = {"virus-pattern": ("171", BASE), "cleanup-settings": ("1", b'{"Scan\\\\Depth": 3}')}
    vendor.ship("r171", calm, kinds=kinds)
    with machine.kept():
        agent = Installed(machine, vendor)
        done = machine.module("service.windows", "install", "--config", agent.config)
        assert "installed" in done.stdout, done.stdout
        key = "HKLM\\SYSTEM\\CurrentControlSet\\Services\\HoldfastAgent"
        needs = machine.run("reg", "query", key, "/v", "DependOnService").stdout
        assert "HoldfastBootGuard" in needs
        for name in ("HoldfastBootGuard", "HoldfastAgent"):  # Wine starts no dependency
            machine.sc("start", name)
            agent.wait_for_state(name, "RUNNING")
        agent.wait_for_release("r171")
        assert _depth(machine) == "0x3"

        hurt = {
            "virus-pattern": ("173", BASE[:1000] + b"173" + BASE[1000:]),
            "cleanup-settings": ("2", b'{"Scan\\\\Depth": 9}'),
        }
        vendor.ship("r173", hurt, kinds=kinds)
        updated = agent.ctl("update")
        agent.wait_for_release("r173")
        assert _depth(machine) == "0x9", updated
        status = json.loads(agent.ctl("status", "--json"))
        assert status["release"] == "r173"

        assert "r171" in agent.ctl("rollback")
        agent.wait_for_release("r171")
        assert json.loads(agent.ctl("status", "--json"))["release"] == "r171"
        assert _depth(machine) == "0x3"
        assert (agent.folder / "state" / "current").read_text().endswith(("\\a", "\\b"))

        machine.sc("stop", "HoldfastAgent")
        agent.wait_for_state("HoldfastAgent", "STOPPED")
        assert "guardian_fault" not in agent.log()
        removed = machine.module("service.windows", "remove")
        assert "removed" in removed.stdout, removed.stdout
        assert "STATE" not in machine.sc("query", "HoldfastAgent")
        assert machine.run("reg", "query", key).returncode != 0


def test_a_service_that_fails_says_with_which_code(machine: Wine, tmp_path: Path) -> None:
    with machine.kept():
        agent = Installed(machine, Vendor(tmp_path / "vendor"))
        done = machine.module("service.windows", "install", "--config", agent.config)
        assert "installed" in done.stdout, done.stdout
        (agent.folder / "config.toml").write_text("no_such_key = 1")
        machine.sc("start", "HoldfastAgent")
        agent.wait_for_state("HoldfastAgent", "STOPPED")
        said = machine.sc("query", "HoldfastAgent")
        assert re.search(r"SERVICE_EXIT_CODE\s*: 78\b", said), said
        assert re.search(r"WIN32_EXIT_CODE\s*: 1066\b", said), said
        machine.module("service.windows", "remove")


def test_an_engine_waits_for_the_boot_guard_if_there_is_one(machine: Wine, tmp_path: Path) -> None:
    key = "HKLM\\SYSTEM\\CurrentControlSet\\Services\\Scanner"
    with machine.kept():
        machine.sc("create", "Scanner", "binPath=", "C:\\scanner.exe")
        alone = machine.module("agent.ctl", "protect", "Scanner")
        assert alone.returncode == 1
        assert "make the services first" in alone.stdout, alone.stdout
        agent = Installed(machine, Vendor(tmp_path / "vendor"))
        machine.module("service.windows", "install", "--config", agent.config)

        done = json.loads(agent.ctl("protect", "Scanner", "--json"))
        assert done["changed"]
        assert "HoldfastBootGuard" in machine.run("reg", "query", key).stdout
        assert "Holdfast's own" in agent.ctl("protect", "holdfastagent")
        assert "no-such" in agent.ctl("protect", "no-such")

        agent.ctl("protect", "--remove", "Scanner")
        assert "HoldfastBootGuard" not in machine.run("reg", "query", key).stdout
        machine.module("service.windows", "remove")
        machine.sc("delete", "Scanner")


def _depth(machine: Wine) -> str:
    key = "HKLM\\SOFTWARE\\HoldfastTest\\Engine\\Scan"
    found = re.search(r"REG_DWORD\s+(\S+)", machine.run("reg", "query", key, "/v", "Depth").stdout)
    return found[1] if found else ""
