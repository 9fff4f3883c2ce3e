"""The boot guard before the guardian: real processes, another boot by its name alone."""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.guardian import lifecycle, main, notes
from agent.slots import record as records
from agent.slots.record import BootRecord, Phase
from tests.support import sabotage
from tests.support.endpoint import Endpoint
from tests.support.vendor import Vendor

LONG_TRIAL = {"probation_s": 3600.0, "warmup_s": 0.0}


@pytest.fixture(scope="module")
def in_trial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Vendor, Path]:
    """A machine that was killed in the trial of r173 with the default of one try."""
    folder = tmp_path_factory.mktemp("guarded")
    vendor = Vendor(folder / "vendor")
    vendor.ship("r171", {"pattern": ("171", b"good" * 500)})
    endpoint = Endpoint(folder / "m", url=vendor.url, root=vendor.root, health=LONG_TRIAL)
    die_in_trial(endpoint)
    record = records.load(endpoint.layout.boot_record)
    kept = lifecycle.settled(lifecycle.keeping(record, reason="healthy", sentence="kept"))
    records.store(endpoint.layout.boot_record, kept)
    vendor.ship("r173", {"pattern": ("173", b"new " * 500)})
    die_in_trial(endpoint)
    return vendor, endpoint.folder


@pytest.fixture
def machine(in_trial: tuple[Vendor, Path], tmp_path: Path) -> Endpoint:
    """A copy without a source: whatever happens here needs no network."""
    vendor, folder = in_trial
    shutil.copytree(folder / "state", tmp_path / "m" / "state", symlinks=True)
    nowhere = (tmp_path / "no-feed").as_uri()
    return Endpoint(tmp_path / "m", url=nowhere, root=vendor.root, health=LONG_TRIAL)


def die_in_trial(machine: Endpoint) -> None:
    machine.start()
    machine.wait_for(lambda status: status["state"]["name"] == "trial")
    machine.kill()


def reboot(machine: Endpoint, **values: Any) -> None:
    """From now on it is another boot, as its units would say."""
    machine.environment["HOLDFAST_BOOT_ID"] = secrets.token_hex(16)
    path = machine.layout.boot_record
    records.store(path, msgspec.structs.replace(records.load(path), **values))


def stored(machine: Endpoint) -> BootRecord:
    return records.load(machine.layout.boot_record)


def bootguard(machine: Endpoint, *prefix: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent.guardian.bootguard", "--config", str(machine.config)]
    return subprocess.run(
        [*prefix, *command],
        env=machine._environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_machine_that_died_in_a_trial_is_back_before_any_guardian_runs(machine: Endpoint) -> None:
    reboot(machine)
    done = bootguard(machine)
    assert done.returncode == 0, done.stderr
    assert (stored(machine).phase, stored(machine).active) == (Phase.REVERTING, "a")
    assert machine.layout.current.resolve().name == "a"
    with machine.running():
        status = machine.wait_for(lambda status: bool(status["quarantine"]))
    assert status["release"] == "r171"
    assert [item["reason"] for item in machine.history()] == ["tries_used_up"]


def test_where_the_way_back_has_lost_its_seal_the_machine_keeps_what_is_sealed(
    machine: Endpoint,
) -> None:
    told = machine.folder / "told"
    hook = f'printf "%s " $HOLDFAST_REASON $HOLDFAST_RELEASE >> {told}'
    with machine.config.open("a") as config:
        config.write(f"[[activation]]\nname = 'e'\ncommand = ['/bin/sh', '-c', {hook!r}]\n")
    (machine.layout.slot("a") / "release.json").unlink()
    reboot(machine)
    done = bootguard(machine)
    assert done.returncode == 0, done.stderr
    assert machine.layout.current.resolve().name == "b"
    with machine.running():
        status = machine.wait_for(lambda seen: bool(seen["quarantine"]) and not seen["verifying"])
        explained = machine.ctl("explain").stdout
    assert (status["release"], status["held"]["reason"]) == ("r173", "tries_used_up")
    assert "slot a isn't sealed" in explained
    assert [item["outcome"] for item in machine.history()] == ["held"]
    assert told.read_text() == "flip r173 "  # the engines are where the link is
    reboot(machine)
    assert bootguard(machine).returncode == 0
    assert (stored(machine).phase, stored(machine).active) == (Phase.COMMITTED, "b")
    assert machine.layout.current.resolve().name == "b"


def test_the_guardian_counts_no_second_try_for_a_boot_that_was_guarded(machine: Endpoint) -> None:
    reboot(machine, tries_left=1)
    assert bootguard(machine).returncode == 0
    assert stored(machine).tries_left == 0
    with machine.running():
        machine.wait_for(lambda status: status["state"]["name"] == "trial")
    assert (stored(machine).phase, stored(machine).tries_left) == (Phase.TRIAL, 0)


def test_a_guarded_boot_is_a_reboot_for_the_trial(machine: Endpoint) -> None:
    """Processes of the boot before aren't crashes, and the warm-up is due again."""
    reboot(machine, tries_left=1)
    bootguard(machine)
    with machine.running():
        machine.wait_for(lambda status: status["state"]["name"] == "trial")
        machine.stop()
    attempt = stored(machine).attempt
    assert attempt is not None
    known = notes.load(machine.layout.trial_notes, attempt=attempt.id)
    assert known.boot_id.replace("-", "") == machine.environment["HOLDFAST_BOOT_ID"]
    assert "boot_counted" not in machine.log.read_text()


def test_a_guard_that_is_killed_at_each_write_leaves_a_boot_that_can_be_guarded(
    machine: Endpoint,
) -> None:
    reboot(machine)
    kill = "import sys; from feed import durable; n = int(sys.argv.pop(1))\n"
    kill += "import os, signal\nseen = []\n"
    kill += "def hook(point, where):\n seen.append(point)\n"
    kill += " if len(seen) == n: os.kill(os.getpid(), signal.SIGKILL)\n"
    kill += "durable.set_fault_hook(hook)\n"
    kill += "from agent.guardian.bootguard import main; raise SystemExit(main())\n"
    for number in range(1, 40):
        command = [sys.executable, "-c", kill, str(number), "--config", str(machine.config)]
        ended = subprocess.run(
            command, env=machine._environment(), capture_output=True, timeout=60, check=False
        )
        if ended.returncode == 0:
            break
        record = stored(machine)
        assert record.phase in {Phase.TRIAL, Phase.REVERTING}
        assert machine.layout.current.resolve().name in {"a", "b"}
    else:
        pytest.fail("it never came through")
    assert number > 3
    assert (stored(machine).active, machine.layout.current.resolve().name) == ("a", "a")


def test_beside_a_running_guardian_it_changes_nothing(machine: Endpoint) -> None:
    reboot(machine, tries_left=1)
    with machine.running():
        machine.wait_for(lambda status: status["state"]["name"] == "trial")
        before = stored(machine).tries_left
        done = bootguard(machine)
        assert (done.returncode, stored(machine).tries_left) == (75, before)
        assert "a guardian" in done.stderr


def test_it_needs_no_network_and_starts_nothing(machine: Endpoint) -> None:
    """Nor does it import what could: it must come up before anything else does."""
    reboot(machine)
    listing = (
        "import sys; from agent.guardian import bootguard; "
        f"status = bootguard.main(['--config', {str(machine.config)!r}]); "
        "print(status, *sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", listing],
        env=machine._environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    status, *modules = done.stdout.split()
    assert status == "0"
    assert not {"psutil", "socketserver", "httpx", "asyncio", "agent.children"} & set(modules)


# A guardian that is stopped before it is ready.


def ended(machine: Endpoint) -> int:
    """Start a guardian that can't go on; its exit code."""
    return machine.start().wait(30)


def test_a_group_that_isnt_known_yet_keeps_no_machine_on_a_release_it_hung_on(
    machine: Endpoint,
) -> None:
    text = machine.config.read_text()
    machine.config.write_text(f'admin_group = "not-yet-known"\n{text}')
    reboot(machine)
    assert ended(machine) == main.EXIT_NAME
    assert "admin_group: there is no group 'not-yet-known'" in machine.log.read_text()
    assert (stored(machine).phase, stored(machine).active) == (Phase.REVERTING, "a")
    assert machine.layout.current.resolve().name == "a"
    machine.config.write_text(text)
    with machine.running():
        assert machine.wait_for(lambda seen: bool(seen["quarantine"]))["release"] == "r171"


def test_a_trial_is_watched_though_the_host_id_is_damaged(machine: Endpoint) -> None:
    text = machine.config.read_text()
    machine.config.write_text(re.sub("host_id = .*", "", text))
    machine.layout.host_id.write_bytes(b"\xff\xfe")
    with machine.running():
        machine.wait_for(lambda seen: seen["state"]["name"] == "trial")
        assert re.fullmatch("[0-9a-f]{16}", machine.status()["host_id"])
    assert '"host_id_unreadable"' in machine.log.read_text()


def test_faults_before_the_guardian_is_ready_count_too(machine: Endpoint) -> None:
    broken = "from agent.guardian import main\n"
    broken += "def serve(*_): raise RuntimeError('nobody foresaw it')\nmain._serve = serve\n"
    sabotage.plant(machine, "guardian", broken)
    for count in range(1, lifecycle.FAULTS_ALLOWED + 2):
        assert ended(machine) == main.EXIT_FAULT
        assert (stored(machine).faults, "nobody foresaw it" in machine.log.read_text()) == (
            count,
            True,
        )
    assert (stored(machine).phase, stored(machine).active) == (Phase.REVERTING, "a")
