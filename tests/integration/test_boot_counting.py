"""What a reboot, a stop and a kill cost a trial: real agentd processes.

A reboot is made by editing the boot id in the record while no guardian runs.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import host
from agent.guardian import lifecycle, notes
from agent.slots import record as records
from agent.slots.record import BootRecord, Phase
from tests.support.endpoint import Endpoint
from tests.support.vendor import Vendor

LONG_TRIAL = {"probation_s": 3600.0, "warmup_s": 0.0, "tries": 2}


@pytest.fixture(scope="module")
def in_trial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Vendor, Path]:
    """A machine that was killed in the trial of r173, to be copied."""
    folder = tmp_path_factory.mktemp("boots")
    vendor = Vendor(folder / "vendor")
    vendor.ship("r171", {"pattern": ("171", b"good" * 500)})
    endpoint = Endpoint(folder / "m", url=vendor.url, root=vendor.root, health=LONG_TRIAL)
    die_in_trial(endpoint)
    record = records.load(endpoint.layout.boot_record)
    kept = lifecycle.settled(lifecycle.keeping(record, reason="healthy", sentence="kept"))
    records.store(endpoint.layout.boot_record, kept)  # however busy this machine is
    vendor.ship("r173", {"pattern": ("173", b"new " * 500)})
    die_in_trial(endpoint)
    return vendor, endpoint.folder


def die_in_trial(machine: Endpoint) -> None:
    machine.start()
    seen_in_trial(machine)
    machine.kill()


@pytest.fixture
def machine(in_trial: tuple[Vendor, Path], tmp_path: Path) -> Endpoint:
    """A copy without a source: whatever happens here needs no network."""
    vendor, folder = in_trial
    shutil.copytree(folder / "state", tmp_path / "m" / "state", symlinks=True)
    nowhere = (tmp_path / "no-feed").as_uri()
    return Endpoint(tmp_path / "m", url=nowhere, root=vendor.root, health=LONG_TRIAL)


def change(machine: Endpoint, **values: Any) -> BootRecord:
    """Edit the record while nobody runs."""
    path = machine.layout.boot_record
    record = msgspec.structs.replace(records.load(path), **values)
    records.store(path, record)
    return record


def reboot(machine: Endpoint, **values: Any) -> BootRecord:
    return change(machine, boot_id="another boot", **values)


def seen_in_trial(machine: Endpoint) -> dict[str, Any]:
    return machine.wait_for(lambda status: status["state"]["name"] == "trial")


def test_power_loss_in_a_trial_costs_a_try(machine: Endpoint) -> None:
    before = reboot(machine, tries_left=1)
    with machine.running():
        seen_in_trial(machine)
        after = records.load(machine.layout.boot_record)
        assert (before.tries_left, after.tries_left) == (1, 0)
        assert after.boot_id == host.boot_id()


def test_power_loss_without_tries_left_reverts_before_any_network(machine: Endpoint) -> None:
    reboot(machine, tries_left=0)
    with machine.running():
        status = machine.wait_for(lambda status: status["slots"]["b"]["release"] is None)
        machine.wait_for(lambda status: bool(status["quarantine"]))
    assert status["release"] == "r171"
    assert machine.slot_problems() == []
    assert [item["reason"] for item in machine.history()] == ["tries_used_up"]
    events = machine.log.read_text()
    assert events.index("boot_counted") < events.index("guardian_started")


def test_the_link_is_back_before_the_fetcher_starts(machine: Endpoint) -> None:
    reboot(machine, tries_left=0)
    assert machine.layout.current.resolve().name == "b"
    machine.start()
    try:
        status = machine.wait_for(lambda status: status["state"]["reason"] != "guardian_down")
        assert machine.layout.current.resolve().name == "a" == status["active_slot"]
    finally:
        machine.stop()


def test_an_orderly_shutdown_in_a_trial_costs_no_try(machine: Endpoint) -> None:
    change(machine, boot_id=host.boot_id(), tries_left=1)
    with machine.running():
        seen_in_trial(machine)
    stopped = records.load(machine.layout.boot_record)
    assert (stopped.clean_stop, stopped.phase) == (True, Phase.TRIAL)
    reboot(machine)
    with machine.running():
        seen_in_trial(machine)
        running = records.load(machine.layout.boot_record)
        assert (running.tries_left, running.clean_stop) == (1, False)


def test_an_agent_that_runs_again_has_taken_its_orderly_stop_back(machine: Endpoint) -> None:
    change(machine, boot_id=host.boot_id(), tries_left=1)
    with machine.running():
        seen_in_trial(machine)
    machine.start()  # on the same boot; then the machine hangs and is power-cycled
    seen_in_trial(machine)
    machine.kill()
    reboot(machine)
    with machine.running():
        seen_in_trial(machine)
        assert records.load(machine.layout.boot_record).tries_left == 0


def test_a_killed_guardian_costs_no_try_and_no_healthy_second(machine: Endpoint) -> None:
    before = change(machine, boot_id=host.boot_id(), healthy_s=1234.0, tries_left=1)
    with machine.running():
        trial = seen_in_trial(machine)["trial"]
        assert trial["healthy_s"] >= before.healthy_s
        assert records.load(machine.layout.boot_record).tries_left == 1


def test_healthy_seconds_outlive_a_reboot(machine: Endpoint) -> None:
    reboot(machine, healthy_s=1234.0, tries_left=1)
    with machine.running():
        assert seen_in_trial(machine)["trial"]["healthy_s"] >= 1234.0


def test_lost_notes_cost_the_baseline_and_not_the_trial(machine: Endpoint) -> None:
    attempt = records.load(machine.layout.boot_record).attempt
    assert attempt is not None
    machine.layout.trial_notes.write_bytes(b"{torn")
    assert notes.load(machine.layout.trial_notes, attempt=attempt.id).attempt == attempt.id
    with machine.running():
        assert seen_in_trial(machine)["release"] == "r173"


def test_a_trial_with_all_its_seconds_still_waits_for_its_hooks(machine: Endpoint) -> None:
    change(machine, boot_id=host.boot_id(), healthy_s=3600.0)
    hook = """[[activation]]
name = "slow"
command = ["/bin/sh", "-c", 'test "$HOLDFAST_REASON" = revert || { sleep 1; exit 1; }']
"""
    machine.configure("file:///nowhere", extra=hook, health={**LONG_TRIAL, "probation_s": 0.0})
    with machine.running():
        status = machine.wait_for(lambda status: bool(status["quarantine"]))
    assert status["release"] == "r171"
    assert [item["reason"] for item in machine.history()] == ["activation_failed"]
