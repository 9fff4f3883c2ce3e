"""A machine that is misconfigured, altered, torn or off the clock, and an agent on it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.slots import record as records
from tests.support import machines
from tests.support.endpoint import ROOT, Endpoint
from tests.support.machines import PATTERN, TEMPLATE
from tests.support.sabotage import move_clock
from tests.support.vendor import Vendor

DAY = 86_400.0
HOUR = 3600.0


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    return machines.vendor(tmp_path, upto="r173")


# Configuration.

_BAD_CONFIGS: dict[str, tuple[Callable[[str], str], tuple[str, ...]]] = {
    "unknown key": (
        lambda text: text.replace("[check]", "[check]\nintervall_s = 5"),
        ("check.intervall_s: unknown key", "interval_s, jitter_s, at_start"),
    ),
    "wrong type": (
        lambda text: text.replace("interval_s = 3600", 'interval_s = "hourly"'),
        ("check.interval_s: 'hourly', expected a number from 1 to 2,592,000",),
    ),
    "impossible value": (
        lambda text: text.replace("interval_s = 3600", "interval_s = -1"),
        ("check.interval_s: -1, expected a number from 1 to 2,592,000",),
    ),
    "a source without an address": (
        lambda text: text.replace("sources = [{ url", "sources = [{ proxi"),
        ("sources[0]", "url"),
    ),
    "bad source": (
        lambda text: text.replace('url = "file://', 'url = "gopher://'),
        ("sources[0].url", "http://, https:// or file://"),
    ),
    "two ways to find a process": (
        lambda text: text + '[[watch]]\nname = "e"\npid_file = "p"\nunit = "u"\n',
        ("watch 'e'", "pid_file, process, executable, unit"),
    ),
    "no TOML": (lambda text: text + "[[[", ("not TOML",)),
}


@pytest.mark.parametrize(("spoil", "words"), _BAD_CONFIGS.values(), ids=_BAD_CONFIGS.keys())
def test_a_configuration_that_cannot_be_used_is_refused_with_file_key_and_form(
    tmp_path: Path, vendor: Vendor, spoil: Callable[[str], str], words: tuple[str, ...]
) -> None:
    endpoint = machines.installed(tmp_path, vendor.url)
    good = endpoint.config.read_text()
    endpoint.config.write_text(spoil(good))
    process = endpoint.start()
    assert process.wait(20) == 78
    said = endpoint.log.read_text()
    assert [word for word in (str(endpoint.config), *words) if word not in said] == [], said
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1
    checked = endpoint.ctl("config", "validate")
    assert checked.returncode != 0
    assert words[-1] in checked.stderr
    endpoint.config.write_text(good)
    machines.untouched(endpoint)


def test_a_missing_configuration_is_named(tmp_path: Path, vendor: Vendor) -> None:
    endpoint = machines.installed(tmp_path, vendor.url)
    endpoint.config.unlink()
    assert endpoint.start().wait(20) == 78
    assert f"{endpoint.config}: can't be read" in endpoint.log.read_text()
    machines.untouched(endpoint)


# Two guardians.


@pytest.mark.parametrize("runtime", ["run", "run-elsewhere"])
def test_a_second_guardian_names_the_first_and_leaves_it_alone(
    tmp_path: Path, vendor: Vendor, runtime: str
) -> None:
    endpoint = machines.installed(tmp_path, vendor.url)
    other = endpoint.config.with_name("other.toml")
    text = endpoint.config.read_text()
    other.write_text(text.replace('runtime_dir = "run"', f'runtime_dir = "{runtime}"'))
    with machines.up(endpoint):
        assert endpoint.process is not None
        second = subprocess.run(
            [sys.executable, "-m", "agent.guardian", "--config", str(other)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert second.returncode == 75
        assert f"pid {endpoint.process.pid}" in second.stderr
        machines.updated(endpoint, "r173")


def test_a_guardian_that_was_killed_does_not_keep_the_next_one_out(
    tmp_path: Path, vendor: Vendor
) -> None:
    endpoint = machines.installed(tmp_path, vendor.url)
    with machines.up(endpoint):
        endpoint.kill()
    with machines.up(endpoint):
        machines.updated(endpoint, "r173")


# Clocks.


@pytest.mark.parametrize("offset", [HOUR, -HOUR, -DAY], ids=["hour ahead", "hour back", "day back"])
def test_a_clock_that_is_off_a_little_changes_nothing(
    tmp_path: Path, vendor: Vendor, offset: float
) -> None:
    endpoint = machines.installed(tmp_path, vendor.url)
    move_clock(endpoint, offset)
    with machines.up(endpoint):
        line = machines.updated(endpoint, "r173")
        assert abs(line["ended"] - offset - time.time()) < 60


def test_a_clock_far_ahead_stops_updates_with_both_times_until_it_is_right(
    tmp_path: Path, vendor: Vendor
) -> None:
    endpoint = machines.installed(tmp_path, vendor.url)
    offset = move_clock(endpoint, 30 * DAY)
    with machines.up(endpoint):
        sentence = machines.refused(endpoint, "trust_expired", "this machine's clock says")
        assert "or the clock is right" in sentence
        machines.untouched(endpoint)
        offset.write_text("0")
        machines.updated(endpoint, "r173")


@pytest.mark.parametrize("step", [DAY, -DAY], ids=["a day ahead", "a day back"])
def test_a_clock_that_steps_in_the_middle_of_probation_neither_ends_nor_shortens_it(
    tmp_path: Path, vendor: Vendor, step: float
) -> None:
    health = machines.HEALTH | {"probation_s": 2.0}
    endpoint = machines.installed(tmp_path, vendor.url, health=health)
    offset = move_clock(endpoint, 0)
    with machines.up(endpoint):
        endpoint.ctl("update", "--no-wait")
        endpoint.wait_for(lambda status: status["trial"] is not None)
        offset.write_text(str(step))
        endpoint.wait_for_release("r173")
        machines.untouched(endpoint, "r173")
        line = endpoint.history()[-1]
        assert line["outcome"] == "committed"
        assert 1.5 <= line["seconds_in_trial"] < 60


# The boot record.


def _torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _edited(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"r171"', b'"r999"'))


def _foreign(path: Path) -> None:
    path.write_text(json.dumps({"checksum": "0" * 64, "record": {"partition": "boot"}}))


def _contradicting(path: Path) -> None:
    record = records.load(path)
    path.write_bytes(records.serialize(records.msgspec.structs.replace(record, slots={})))


_BAD_RECORDS: dict[str, Callable[[Path], object]] = {
    "torn": _torn,
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(4096)),
    "edited": _edited,
    "foreign": _foreign,
    "no JSON": lambda path: path.write_bytes(b"\x7fELF" + bytes(100)),
    "contradicting": _contradicting,
}


@pytest.mark.parametrize("spoil", _BAD_RECORDS.values(), ids=_BAD_RECORDS.keys())
def test_an_unreadable_boot_record_is_kept_aside_and_rebuilt_from_the_slots(
    tmp_path: Path, vendor: Vendor, spoil: Callable[[Path], object]
) -> None:
    endpoint = machines.installed(tmp_path, vendor.url, release="r173")
    path = endpoint.layout.boot_record
    before = records.load(path)
    spoil(path)
    spoilt = path.read_bytes()
    assert endpoint.ctl("status").returncode == 2  # nobody watches, and it says so
    with machines.up(endpoint):
        machines.untouched(endpoint, "r173")
        assert (endpoint.layout.state / "boot.json.unreadable").read_bytes() == spoilt
        assert '"boot_record_rebuilt"' in endpoint.log.read_text()
        rebuilt = records.load(path)
        assert (rebuilt.active, rebuilt.slots) == (before.active, before.slots)
        vendor.ship("r175", machines.components(175))
        machines.updated(endpoint, "r175")


def test_a_boot_record_and_a_link_that_are_gone_are_made_anew(
    tmp_path: Path, vendor: Vendor
) -> None:
    endpoint = machines.installed(tmp_path, vendor.url)
    endpoint.layout.boot_record.unlink()
    endpoint.layout.current.unlink()
    with machines.up(endpoint):
        machines.untouched(endpoint)
        assert '"boot_record_missing"' in endpoint.log.read_text()
        machines.updated(endpoint, "r173")


# An active slot that was altered on the disk.


def _file(endpoint: Endpoint, component: str) -> Path:
    return endpoint.layout.current.resolve() / component / f"{component}.dat"


def _alter(endpoint: Endpoint, component: str) -> None:
    path = _file(endpoint, component)
    path.chmod(0o644)
    machines.flip_bit(path)
    path.chmod(0o444)


def _cut(endpoint: Endpoint, component: str) -> None:
    path = _file(endpoint, component)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:100])


def _delete(endpoint: Endpoint, component: str) -> None:
    _file(endpoint, component).unlink()


def _expose(endpoint: Endpoint, component: str) -> None:
    _file(endpoint, component).chmod(0o666)


def _add(endpoint: Endpoint, component: str) -> None:
    _file(endpoint, component).with_name("extra.dat").write_bytes(b"more rules")


_DAMAGES = [_alter, _cut, _delete, _expose, _add]


@pytest.mark.parametrize("damage", _DAMAGES)
def test_what_was_altered_is_found_at_start_and_mended_from_the_other_slot(
    tmp_path: Path, vendor: Vendor, damage: Callable[[Endpoint, str], None]
) -> None:
    endpoint = machines.installed(tmp_path, vendor.url, release="r173")
    damage(endpoint, TEMPLATE)
    assert endpoint.slot_problems() != []
    with machines.up(endpoint):
        assert '"file_repaired"' in endpoint.log.read_text()
        machines.untouched(endpoint, "r173")
        assert endpoint.ctl("status").returncode == 0
    assert len(endpoint.history()) == 2  # mended in place: no attempt was needed


def test_verify_finds_what_was_altered_and_mends_it_from_the_other_slot(
    tmp_path: Path, vendor: Vendor
) -> None:
    endpoint = machines.installed(tmp_path, vendor.url, release="r173")
    with machines.up(endpoint):
        _alter(endpoint, TEMPLATE)
        verified = endpoint.ctl("verify")
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert f"repaired {TEMPLATE}/{TEMPLATE}.dat" in verified.stdout
        machines.untouched(endpoint, "r173")


def test_a_file_that_only_the_feed_has_is_fetched_while_the_prior_release_runs(
    tmp_path: Path, vendor: Vendor
) -> None:
    endpoint = machines.installed(tmp_path, vendor.url, release="r173")
    hidden = vendor.feed.rename(vendor.folder / "away")
    _alter(endpoint, PATTERN)
    with machines.up(endpoint):
        endpoint.wait_for_release("r171")
        machines.untouched(endpoint, "r171")
        line = endpoint.history()[2]
        assert (line["outcome"], line["reason"]) == ("reverted", "slot_damaged")
        assert f"{PATTERN}/{PATTERN}.dat" in line["sentence"]
        assert endpoint.status()["quarantine"] == []
        hidden.rename(vendor.feed)
        endpoint.wait_for(machines.settled)
        machines.updated(endpoint, "r173")


def test_a_machine_with_one_slot_is_repaired_from_the_feed(tmp_path: Path) -> None:
    vendor = machines.vendor(tmp_path)
    endpoint = machines.installed(tmp_path, vendor.url)
    _alter(endpoint, PATTERN)
    with machines.up(endpoint):
        endpoint.wait_for(lambda _: len(endpoint.history()) == 2)
        endpoint.wait_for(machines.settled)
        machines.untouched(endpoint)
        line = endpoint.history()[-1]
        assert (line["outcome"], line["trigger"]) == ("committed", "repair")
        assert line["wire_bytes"] >= len(machines.pattern(171))
        assert endpoint.ctl("status").returncode == 0
        mended = endpoint.wait_for(lambda status: status["repaired"])
        assert not any(slot["problems"] for slot in mended["slots"].values())


def test_damage_that_nothing_can_mend_now_is_told_and_mended_later(tmp_path: Path) -> None:
    vendor = machines.vendor(tmp_path)
    endpoint = machines.installed(tmp_path, vendor.url)
    hidden = vendor.feed.rename(vendor.folder / "away")
    _delete(endpoint, PATTERN)
    with machines.up(endpoint):
        endpoint.wait_for(lambda status: status["state"]["name"] == "failed")
        status = endpoint.ctl("status")
        assert status.returncode == 2
        assert f"{PATTERN}/{PATTERN}.dat is missing" in status.stdout
        assert endpoint.ctl("verify").returncode == 1
        hidden.rename(vendor.feed)
        endpoint.wait_for(machines.settled)
        assert endpoint.ctl("update").returncode == 0
        machines.untouched(endpoint)
        assert endpoint.ctl("status").returncode == 0


def test_an_active_slot_without_its_seal_is_left_for_the_prior_one(
    tmp_path: Path, vendor: Vendor
) -> None:
    endpoint = machines.installed(tmp_path, vendor.url, release="r173")
    shutil.rmtree(endpoint.layout.current.resolve())
    with endpoint.running():
        endpoint.wait_for(lambda status: status["release"] is not None and machines.settled(status))
        assert endpoint.slot_problems() == []
        endpoint.ctl("update")
        endpoint.wait_for_release("r173")
        machines.untouched(endpoint, "r173")
