"""A disk that is full, read-only, or turns so while an agent works on it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import machines
from tests.support.endpoint import Endpoint
from tests.support.sabotage import break_disk, plant, uproot
from tests.support.vendor import Vendor

STEPS = {
    "download": ("worker", "write .*incoming/"),
    "download's end": ("worker", "rename .*incoming/"),
    "metadata": ("worker", "write .*trust/fetcher/"),
    "trust": ("stager", "write .*trust/stager/"),
    "stage": ("stager", "fsync .*slots/b/"),
    "seal": ("stager", "write .*slots/b/release.json"),
    "record": ("guardian", "write .*boot.json"),
}


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    return machines.vendor(tmp_path, upto="r173")


@pytest.mark.parametrize(("program", "pattern"), STEPS.values(), ids=STEPS.keys())
def test_a_disk_that_is_full_at_any_step_costs_only_the_attempt(
    tmp_path: Path, vendor: Vendor, program: str, pattern: str
) -> None:
    endpoint = machines.installed(tmp_path, vendor.url)
    armed = tmp_path / "full"
    break_disk(endpoint, program, pattern=pattern, error="ENOSPC", armed=armed)
    with machines.up(endpoint):
        armed.touch()
        machines.refused(endpoint, "disk_full", "No space left on device")
        machines.untouched(endpoint)
        armed.unlink()
        machines.updated(endpoint, "r173")


def test_a_flip_that_cannot_be_noted_is_not_made(tmp_path: Path, vendor: Vendor) -> None:
    endpoint = machines.installed(tmp_path, vendor.url)
    armed = tmp_path / "full"
    break_disk(endpoint, "guardian", pattern="write .*trial.json", error="ENOSPC", armed=armed)
    with machines.up(endpoint):
        armed.touch()
        machines.refused(endpoint, "disk_full", "the flip couldn't be recorded")
        assert endpoint.history()[-1]["reason"] == "disk_full"
        machines.untouched(endpoint)
        armed.unlink()
        machines.updated(endpoint, "r173")


def test_a_verdict_that_cannot_be_recorded_is_recorded_when_there_is_room(
    tmp_path: Path, vendor: Vendor
) -> None:
    health = machines.HEALTH | {"probation_s": 5.0}
    endpoint = machines.installed(tmp_path, vendor.url, health=health)
    armed = tmp_path / "full"
    break_disk(endpoint, "guardian", pattern="write .*boot.json", error="ENOSPC", armed=armed)
    with machines.up(endpoint):
        endpoint.ctl("update", "--no-wait")
        endpoint.wait_for(lambda status: status["trial"] is not None)
        armed.touch()
        endpoint.wait_for(lambda _: '"commit_not_written"' in endpoint.log.read_text())
        assert endpoint.status()["state"]["name"] == "trial"
        armed.unlink()
        endpoint.wait_for_release("r173")
        machines.untouched(endpoint, "r173")


def test_a_machine_goes_back_though_the_revert_cannot_be_recorded_yet(
    tmp_path: Path, vendor: Vendor
) -> None:
    armed = tmp_path / "full"
    hook = tmp_path / "hook"
    hook.write_text(f'#!/bin/sh\n[ "$HOLDFAST_RELEASE" = r171 ] || {{ touch {armed}; exit 1; }}\n')
    hook.chmod(0o755)
    extra = f'[[activation]]\nname = "engine"\ncommand = ["{hook}"]\n'
    endpoint = machines.installed(tmp_path, vendor.url, extra=extra)
    prior = endpoint.layout.current.resolve()
    break_disk(endpoint, "guardian", pattern="write .*boot.json", error="ENOSPC", armed=armed)
    with machines.up(endpoint):
        endpoint.ctl("update", "--no-wait")
        endpoint.wait_for(lambda _: '"settling_interrupted"' in endpoint.log.read_text())
        assert endpoint.layout.current.resolve() == prior
        assert endpoint.status()["release"] == "r171"
        armed.unlink()
        status = endpoint.wait_for(lambda status: status["state"]["name"] == "reverted")
        assert status["state"]["reason"] == "activation_failed"
        machines.untouched(endpoint)


def test_a_line_of_the_history_that_is_refused_is_written_when_there_is_room(
    tmp_path: Path, vendor: Vendor
) -> None:
    endpoint = machines.installed(tmp_path, vendor.url)
    armed = tmp_path / "full"
    break_disk(endpoint, "guardian", pattern="append .*history", error="ENOSPC", armed=armed)
    before = len(endpoint.history())
    with machines.up(endpoint):
        armed.touch()
        endpoint.ctl("update", "--no-wait")
        endpoint.wait_for(lambda _: '"history_not_written"' in endpoint.log.read_text())
        armed.unlink()
        endpoint.wait_for_release("r173")
    (line,) = endpoint.history()[before:]
    assert (line["outcome"], line["release"]) == ("committed", "r173")


# A file system that is really full.


@pytest.fixture
def small_disk(tmp_path: Path, vendor: Vendor) -> Iterator[Endpoint]:
    """A machine that runs r171 from a file system of 600 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", disk], check=True)
    try:
        yield machines.installed(disk, vendor.url)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def _fill(path: Path, *, leave: int) -> None:
    free = shutil.disk_usage(path.parent).free
    path.write_bytes(bytes(max(free - leave, 0)))


@pytest.mark.system("mount", "umount")
def test_too_little_room_is_told_before_the_first_byte_is_fetched(
    vendor: Vendor, small_disk: Endpoint
) -> None:
    with machines.up(small_disk):
        filler = small_disk.folder / "filler"
        _fill(filler, leave=60_000)
        sentence = machines.refused(small_disk, "disk_full", "bytes")
        assert any(character.isdigit() for character in sentence)
        assert list(small_disk.layout.cache.glob("*.part")) == []
        machines.untouched(small_disk)
        filler.unlink()
        machines.updated(small_disk, "r173")


_FILL = """
from pathlib import Path
import shutil

def fill():
    path = Path({path!r})
    with path.open("wb") as file:
        try:
            while True:
                file.write(bytes(4096))
                file.flush()
        except OSError:
            pass
"""


@pytest.mark.system("mount", "umount")
@pytest.mark.parametrize("program", ["worker", "stager"])
def test_a_disk_that_somebody_fills_meanwhile_costs_only_the_attempt(
    vendor: Vendor, small_disk: Endpoint, program: str
) -> None:
    machines.delta_of(vendor).unlink()
    filler = small_disk.folder / "filler"
    plant(small_disk, program, _FILL.format(path=str(filler)))
    when = {
        "worker": "from agent.fetcher.handover import Fetch as it\nname = '_plan_within_room'\n",
        "stager": "from agent.stager.rebuild import Rebuilder as it\nname = '_place'\n",
    }[program]
    plant(
        small_disk,
        program,
        when
        + _FILL.format(path=str(filler))
        + "real = getattr(it, name)\n"
        + "setattr(it, name, lambda *given: (fill(), real(*given))[1])\n",
    )
    with machines.up(small_disk):
        machines.refused(small_disk, "disk_full", "No space left on device")
        machines.untouched(small_disk)
        filler.unlink()
        uproot(small_disk, program)
        machines.updated(small_disk, "r173")


# Read-only.


def _refused_start(endpoint: Endpoint, *prefix: str) -> str:
    process = endpoint.start(*prefix)
    try:
        assert process.wait(20) == 73
    finally:
        process.kill()
    return endpoint.log.read_text()


@pytest.mark.system("unshare", "mount")
def test_a_read_only_state_folder_is_refused_at_start(tmp_path: Path, vendor: Vendor) -> None:
    endpoint = machines.installed(tmp_path, vendor.url)
    state = endpoint.layout.state
    script = f'mount --bind "{state}" "{state}" && mount -o remount,ro,bind "{state}" && exec "$@"'
    said = _refused_start(endpoint, "unshare", "-m", "sh", "-c", script, "sh")
    assert str(state) in said
    assert "must be writable" in said
    assert "The active release keeps running as it is" in said
    machines.untouched(endpoint)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_state_folder_of_somebody_else_is_refused_at_start(
    tmp_path: Path, vendor: Vendor
) -> None:
    endpoint = machines.installed(tmp_path, vendor.url)
    endpoint.layout.state.chmod(0o555)
    try:
        said = _refused_start(endpoint)
    finally:
        endpoint.layout.state.chmod(0o755)
    assert "must be writable" in said
    machines.untouched(endpoint)


def test_a_state_folder_that_is_a_file_is_refused_at_start(tmp_path: Path, vendor: Vendor) -> None:
    endpoint = machines.bare(tmp_path, vendor.url)
    endpoint.layout.state.write_text("")
    said = _refused_start(endpoint)
    assert "must be writable" in said
    assert str(endpoint.layout.state) in said


def test_a_disk_that_turns_read_only_stops_updates_and_not_the_agent(
    tmp_path: Path, vendor: Vendor
) -> None:
    endpoint = machines.installed(tmp_path, vendor.url)
    armed = tmp_path / "read-only"
    for program in ("guardian", "worker", "stager"):
        break_disk(endpoint, program, pattern=".", error="EROFS", armed=armed)
    with machines.up(endpoint):
        armed.touch()
        machines.refused(endpoint, "io_error", "Read-only file system")
        machines.untouched(endpoint)
        assert endpoint.ctl("status").returncode == 1
        armed.unlink()
        machines.updated(endpoint, "r173")
