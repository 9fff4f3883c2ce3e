"""What docs/operations.md has an administrator type does what the page says."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.system.systemd.machine import ENGINE, UNITS, Machine

BOOT_GUARD, AGENT, FETCHER = UNITS
PAGE = Path(__file__).parents[3] / "docs" / "operations.md"


def blocks(heading: str) -> list[str]:
    """The commands under a heading: a script for each indented block."""
    section = PAGE.read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"(?:^ {4}.*\n)+", section, re.MULTILINE)
    return [re.sub(r"^ {4}", "", block, flags=re.MULTILINE) for block in found]


def kept(machine: Machine) -> str:
    """Its newest release: a good one, committed."""
    release = machine.ship()
    machine.update()
    assert machine.wait_for_end(release)["outcome"] == "committed"
    return release


def test_without_the_agent_an_engine_goes_back_by_hand_and_stays_there_over_a_boot(
    machine: Machine,
) -> None:
    guest = machine.guest
    before, left = kept(machine), kept(machine)
    active = guest.status()["active_slot"]
    spare = "b" if active == "a" else "a"
    there, back = blocks("Back without the agent")
    *preparing, last = back.splitlines()
    try:
        typed = there.replace("slots/b current", f"slots/{spare} current")
        said = guest.run("sh", "-ec", typed).stdout.split()
        assert said == [f"slots/{active}", "slots/a/release.json", "slots/b/release.json"]
        assert machine.engine_log()[-1] == f"start good {before}"
        guest.shut_down()
        guest.boot()
        assert machine.engine_log() == [f"start good {before}"]
        assert guest.main_pid(AGENT) == 0
    finally:
        guest.run("sh", "-ec", "\n".join(preparing))
    guest.wait_until(  # refused while the slots are verified
        lambda: guest.run("sh", "-c", last, ok=False).returncode == 0, "it has gone back"
    )
    assert guest.status()["release"] == before
    assert (guest.history()[-1]["release"], guest.history()[-1]["reason"]) == (left, "rollback")
    assert machine.engine_log() == [f"start good {before}", f"reload good {before}"]
    machine.wait_for_units()


def test_while_the_fetcher_is_masked_a_trial_is_watched_on_and_left_when_it_hurts(
    machine: Machine,
) -> None:
    guest = machine.guest
    (mask,) = re.findall(r"`(systemctl mask --now holdfast-fetcher)`", PAGE.read_text())
    (unmask,) = re.findall(r"`(systemctl unmask holdfast-fetcher)`", PAGE.read_text())
    release = machine.try_out()
    try:
        guest.run(*mask.split())
        guest.run("systemctl", "restart", AGENT)  # which wants the fetcher
        assert guest.unit(FETCHER)["ActiveState"] == "inactive"
        begun = guest.wait_for(lambda seen: seen["trial"])["trial"]["healthy_s"]
        guest.wait_for(lambda seen: seen["trial"]["healthy_s"] > begun)
        guest.run("systemctl", "stop", ENGINE)
        end = machine.wait_for_end(release)
        assert (end["outcome"], end["reason"]) == ("reverted", "process_missing")
    finally:
        guest.run("systemctl", "start", ENGINE)
        guest.run(*unmask.split())
        guest.run("systemctl", "start", FETCHER)
    machine.wait_for_units()


def test_what_support_needs_is_put_into_one_folder(machine: Machine) -> None:
    guest = machine.guest
    (script,) = blocks("What support needs")
    folder = guest.disk / "root/holdfast-case"
    try:
        guest.run("sh", "-c", script, ok=False)  # there is no *.unreadable
        assert {path.name for path in folder.iterdir() if path.is_dir() or path.stat().st_size} >= {
            *("status.json", "explain.txt", "history.json", "config.txt", "journal.txt"),
            *("boot.json", "history.jsonl", "evidence"),
        }
    finally:
        shutil.rmtree(folder)


@contextmanager
def elsewhere(machine: Machine, folder: str) -> Iterator[None]:
    """Settings, drop-ins and the engine's path for a state folder there, and back in the end."""
    disk = machine.guest.disk
    settings, engine = disk / "etc/holdfast/config.toml", disk / "opt/scanner/engine.py"
    before = {path: path.read_text() for path in (settings, engine)}
    settings.write_text(
        f'state_dir = "{folder}"\nruntime_dir = "/run/holdfast"\n{before[settings]}'
    )
    engine.write_text(before[engine].replace("/var/lib/holdfast", folder))
    guard = f"[Unit]\nRequiresMountsFor={folder}\nConditionPathExists=\n"
    paths = [disk / f"etc/systemd/system/{name}.d/test.conf" for name in UNITS]
    for path in paths:
        path.parent.mkdir()
        path.write_text(
            guard if BOOT_GUARD in str(path) else f"[Service]\nReadWritePaths={folder}\n"
        )
    try:
        yield
    finally:
        for path, text in before.items():
            path.write_text(text)
        for path in paths:
            shutil.rmtree(path.parent)


def test_a_state_that_was_copied_into_another_folder_goes_on_there(machine: Machine) -> None:
    guest = machine.guest
    history = guest.history()
    starting = ("sh", "-ec", f"systemctl daemon-reload; systemctl restart {ENGINE} {AGENT}")
    guest.run("systemctl", "stop", AGENT, FETCHER)
    guest.run("sh", "-ec", "install -d /srv/holdfast; cp -a /var/lib/holdfast/. /srv/holdfast/")
    try:
        with elsewhere(machine, "/srv/holdfast"):
            guest.run(*starting)
            machine.wait_for_units()
            release = machine.ship()
            guest.wait_until(
                lambda: guest.run("agentctl", "update", ok=False).returncode == 0, "it updates"
            )
            assert machine.engine_log()[-1] == f"reload good {release}"
            lines = (guest.disk / "srv/holdfast/history.jsonl").read_text().splitlines()
            assert len(lines) == len(history) + 1
            assert guest.history() == history  # nothing is written to the old folder
            guest.shut_down()
            guest.boot()
            assert machine.engine_log()[0] == f"start good {release}"
            assert guest.status()["release"] == release
            assert guest.said(BOOT_GUARD)[-1]["event"] == "boot_guarded"
            guest.run("systemctl", "stop", AGENT, FETCHER)
    finally:
        guest.run(*starting)
        shutil.rmtree(guest.disk / "srv/holdfast")
