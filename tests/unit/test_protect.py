"""agentctl protect: one drop-in, durably, and back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agent.ctl import main as ctl
from agent.ctl import protect
from agent.ctl.client import AskError
from feed import durable


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """/etc/systemd/system, and a systemctl that knows every unit but absent.service.

    What it says of the boot guard's LoadState is in the file `guard` beside the folder.
    """
    folder = tmp_path / "system"
    folder.mkdir()
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n'
        'case "$*" in\n'
        '*"LoadState -- absent"*) echo not-found;;\n'
        f'*"LoadState -- {protect.GUARD}") cat {tmp_path}/guard;;\n'
        "*LoadState*) echo loaded;;\n"
        '*"Before -- early"*) echo sysinit.target local-fs.target;;\n'
        "*Before*) echo sysinit.target shutdown.target;;\n"
        "*After*) echo system.slice local-fs.target;;\n"
        "esac\n"
    )
    (tmp_path / "guard").write_text("loaded\n")
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{systemctl.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(protect.protect, "__kwdefaults__", {"folder": folder})
    monkeypatch.setattr(protect.unprotect, "__kwdefaults__", {"folder": folder})
    return folder


def test_a_protected_unit_wants_the_boot_guard_and_starts_after_it(units: Path) -> None:
    done = protect.protect("scanner.service")
    text = (units / "scanner.service.d" / "50-holdfast.conf").read_text()
    assert "[Unit]\nWants=holdfast-bootguard.service\nAfter=holdfast-bootguard.service\n" in text
    assert (done["changed"], done["known"]) == (True, True)
    assert "daemon-reload" in (units.parent / "calls").read_text()


def test_protecting_twice_changes_nothing_and_says_so(units: Path) -> None:
    protect.protect("scanner.service")
    again = protect.protect("scanner.service")
    assert not again["changed"]
    assert "was there already" in protect.sentence(again)


def test_what_is_undone_leaves_nothing_of_ours_and_all_of_others(units: Path) -> None:
    protect.protect("scanner.service")
    done = protect.unprotect("scanner.service")
    assert list(units.iterdir()) == []
    assert "removed" in protect.sentence(done)
    protect.protect("scanner.service")
    other = units / "scanner.service.d" / "override.conf"
    other.write_text("")
    protect.unprotect("scanner.service")
    assert other.exists()
    assert "wasn't protected" in protect.sentence(protect.unprotect("scanner.service"))


def test_a_unit_that_isnt_installed_yet_is_said(units: Path) -> None:
    assert "doesn't know absent.service yet" in protect.sentence(protect.protect("absent.service"))


@pytest.mark.parametrize(
    ("state", "said"),
    [("masked", f"systemctl unmask {protect.GUARD}"), ("not-found", "install"), ("error", "why")],
)
def test_a_boot_guard_that_will_not_start_is_said(units: Path, state: str, said: str) -> None:
    (units.parent / "guard").write_text(f"{state}\n")
    done = protect.protect("scanner.service")
    assert done["guard"] == state
    assert said in protect.sentence(done)


def test_a_unit_that_the_boot_guard_itself_waits_for_is_refused(units: Path) -> None:
    with pytest.raises(AskError, match=r"early\.service starts before local-fs\.target"):
        protect.protect("early.service")
    assert list(units.iterdir()) == []


@pytest.mark.parametrize("unit", ["scanner", "../x.service", "a b.service", "--force", ""])
def test_a_bad_name_is_refused_and_nothing_written(units: Path, unit: str) -> None:
    with pytest.raises(AskError, match="whole name"):
        protect.protect(unit)
    assert list(units.iterdir()) == []


def test_holdfasts_own_units_are_refused(units: Path) -> None:
    with pytest.raises(AskError, match="Holdfast's own"):
        protect.protect("holdfast-agent.service")


def test_without_root_it_says_how(
    units: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert ctl.main(["protect", "scanner.service"]) == 1
    assert "sudo agentctl protect scanner.service" in capsys.readouterr().err


def test_without_systemd_it_says_so(units: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(AskError, match="needs systemd"):
        protect.protect("scanner.service")


def test_a_full_disk_leaves_no_half_drop_in(units: Path) -> None:
    def full(point: str, where: str) -> None:
        if point == "fsync":
            raise OSError(28, "No space left on device", where)

    durable.set_fault_hook(full)
    try:
        with pytest.raises(AskError, match="No space left"):
            protect.protect("scanner.service")
    finally:
        durable.set_fault_hook(None)
    assert list((units / "scanner.service.d").iterdir()) == []


def test_the_command_prints_what_it_did_and_how_to_undo_it(
    units: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctl.main(["protect", "scanner.service"]) == 0
    said = capsys.readouterr().out
    assert "50-holdfast.conf" in said
    assert "undo: agentctl protect --remove scanner.service" in said
    assert ctl.main(["protect", "--remove", "scanner.service", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["protected"] is False
