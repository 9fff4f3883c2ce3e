"""The Windows services, as far as they are values: order, recovery, folders, log."""

from __future__ import annotations

import io
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.host import naming
from agent.layout import Layout
from service.windows import plan
from service.windows.journal import FILES_KEPT, Journal


def test_the_boot_guard_starts_before_the_guardian_and_before_engines() -> None:
    guard, guardian = plan.SERVICES
    assert guard.needs == ()
    assert guardian.needs == (guard.name,)
    groups = plan.with_group(["Boot Bus Extender", "FSFilter Anti-Virus"])
    assert groups == ["Boot Bus Extender", "FSFilter Anti-Virus", guard.group]
    assert plan.with_group(groups) == groups
    assert plan.without_group(groups) == groups[:-1]


def test_an_engine_waits_for_the_boot_guard_once() -> None:
    assert naming.with_boot_guard(["RpcSs"]) == ["HoldfastBootGuard", "RpcSs"]
    assert naming.with_boot_guard(["RpcSs", "holdfastbootguard"]) == ["HoldfastBootGuard", "RpcSs"]
    assert naming.without_boot_guard(["HOLDFASTBOOTGUARD", "RpcSs"]) == ["RpcSs"]


def test_a_service_runs_isolated_from_whoever_set_variables() -> None:
    line = plan.command_line("C:\\Program Files\\p\\python.exe", plan.SERVICES[1], "C:\\c d.toml")
    assert line == (
        '"C:\\Program Files\\p\\python.exe" -I -m service.windows.guardian --config "C:\\c d.toml"'
    )


def test_a_guardian_that_fails_is_always_started_again() -> None:
    assert plan.RESTART_AFTER_MS[0] <= 5_000
    assert all(0 < after <= 60_000 for after in plan.RESTART_AFTER_MS)


@pytest.mark.parametrize(
    ("state", "exit_code", "wanted"),
    [
        (4, 0, True),  # running
        (2, 0, True),  # starting
        (1, 0, False),  # stopped by somebody
        (1, 1077, False),  # never started
        (1, 1066, True),  # ended with a code of its own, and about to be restarted
        (1, 1067, True),  # killed
    ],
)
def test_what_runs_or_has_failed_runs_after_an_upgrade(
    state: int, exit_code: int, wanted: bool
) -> None:
    assert plan.is_wanted(state=state, exit_code=exit_code) == wanted


def test_only_administration_starts_stops_changes_or_controls_a_service() -> None:
    aces = re.findall(r"\(A;;([A-Z]*);;;([A-Z]{2})\)", plan.RIGHTS)
    assert "D:" + "".join(f"(A;;{rights};;;{who})" for rights, who in aces) == plan.RIGHTS
    # Configuration, status, dependents, interrogation, descriptor: what looks and nothing else.
    looking = {"CC", "LC", "SW", "LO", "RC"}
    may = {who: set(re.findall("..", rights)) for rights, who in aces}
    assert {who for who, rights in may.items() if rights - looking} == {"SY", "BA"}


def test_no_service_keeps_a_privilege_over_other_processes() -> None:
    for service in plan.SERVICES:
        dangerous = {"SeDebugPrivilege", "SeLoadDriverPrivilege", "SeTakeOwnershipPrivilege"}
        assert dangerous.isdisjoint(service.privileges)


def test_a_folder_gets_its_rights_before_what_is_in_it() -> None:
    layout = Layout(Path("/h/state"), Path("/h/state/run"), Path("/h/root.json"))
    found = plan.folders(layout, config_folder="/h")
    names = list(found)
    for place, name in enumerate(names):
        assert not any(Path(name).is_relative_to(later) for later in names[place + 1 :])
    assert "LS" not in found["/h/state/trust/stager"]
    assert "BU" not in found["/h/state/incoming"]


def test_a_folder_with_anything_else_in_it_isnt_the_configurations() -> None:
    ours = ["Holdfast.toml", "root.json", "state", "LOG"]
    assert plan.strays(ours, config="holdfast.toml") == []
    assert plan.strays([*ours, "scanner.ini", "bin"], config="holdfast.toml") == [
        "bin",
        "scanner.ini",
    ]


def test_a_service_names_the_configuration_that_it_has() -> None:
    for config in ("C:\\c d.toml", "C:\\c.toml"):
        line = plan.command_line("C:\\p\\python.exe", plan.SERVICES[1], config)
        assert plan.is_configured_by(line, config.lower())
        assert not plan.is_configured_by(line, "C:\\other.toml")


@pytest.mark.parametrize(
    ("owner", "attributes", "trusted"),
    [
        ("S-1-5-18", 0x10, True),
        ("S-1-5-32-544", 0x10, True),
        ("S-1-5-21-1-2-3-500", 0x10, True),  # who installs it
        ("S-1-5-21-1-2-3-1001", 0x10, False),
        ("S-1-5-18", 0x410, False),  # a junction: the owner of what it leads to says nothing
    ],
)
def test_a_folder_is_used_if_administration_made_it_and_it_leads_nowhere(
    owner: str, attributes: int, *, trusted: bool
) -> None:
    own = "S-1-5-21-1-2-3-500"
    assert plan.is_trusted(owner=owner, own=own, attributes=attributes) is trusted


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (json.dumps({"event": "state", "level": "info"}), None),
        (json.dumps({"event": "guardian_started", "level": "info"}), "info"),
        (json.dumps({"event": "fetcher_ended", "level": "error"}), "error"),
        (json.dumps({"event": "hook_failed", "level": "warning"}), "warning"),
        ("agentd: the configuration can't be used", "error"),
        ("[1]", "error"),
        ("", None),
    ],
)
def test_the_event_log_gets_what_matters(line: str, kind: str | None) -> None:
    assert plan.severity(line) == kind


def test_the_log_is_bounded_and_keeps_whole_lines(tmp_path: Path) -> None:
    told: list[str] = []
    log = tmp_path / "log" / "agent.log"
    journal = Journal(log, lambda _kind, line: told.append(line), file_bytes_max=200)
    for number in range(300):
        journal.write(f"line {number}")
        journal.write("\n")
    journal.close()
    assert len(told) == 300
    files = list(log.parent.iterdir())
    assert len(files) == FILES_KEPT + 1
    assert all(path.stat().st_size < 300 for path in files)
    assert log.read_text().endswith("line 299\n")


Refused = Callable[[Path], bool]


def _refuse(monkeypatch: pytest.MonkeyPatch, rename: Refused, truncate: Refused) -> None:
    """Have a reader hold files as Windows lets one do: without sharing their deletion."""
    really_replace, really_truncate = Path.replace, os.truncate

    def replace(path: Path, target: Path) -> Path:
        if rename(path):
            raise PermissionError(13, "in use", str(path))
        return really_replace(path, target)

    def shorten(path: Path, size: int) -> None:
        if truncate(path):
            raise PermissionError(13, "mapped", str(path))
        really_truncate(path, size)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(os, "truncate", shorten)


def _lines(folder: Path) -> list[str]:
    """Of the log and the older ones, oldest first."""
    files = sorted(folder.iterdir(), key=lambda path: -int(path.suffix[1:].replace("log", "-1")))
    return [line for path in files for line in path.read_text().splitlines()]


def _log_lines(log: Path, numbers: range, *, file_bytes_max: int = 100) -> list[str]:
    """Write a line of 10 bytes for each number; returns the lines."""
    journal = Journal(log, lambda _kind, _line: None, file_bytes_max=file_bytes_max)
    lines = [f"line {number:04}" for number in numbers]
    for line in lines:
        journal.write(f"{line}\n")
    journal.close()
    return lines


@pytest.mark.parametrize("mapped", [False, True])
def test_a_reader_that_refuses_the_rename_loses_no_line_and_no_older_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool
) -> None:
    log = tmp_path / "agent.log"
    wanted = _log_lines(log, range(25))
    with monkeypatch.context() as patched:
        _refuse(patched, lambda path: path == log, lambda path: mapped and path == log)
        wanted += _log_lines(log, range(25, 40))
        assert _lines(tmp_path) == wanted
        assert mapped == (log.stat().st_size > 100)
    wanted += _log_lines(log, range(40, 45))
    assert _lines(tmp_path) == wanted
    assert log.stat().st_size <= 100


def test_a_reader_of_an_older_log_loses_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "agent.log"
    wanted = _log_lines(log, range(25))
    with monkeypatch.context() as patched:
        _refuse(patched, lambda path: path.suffix == ".1", lambda _path: False)
        wanted += _log_lines(log, range(25, 45))
        assert _lines(tmp_path) == wanted
    wanted += _log_lines(log, range(45, 50))
    assert _lines(tmp_path) == wanted


def test_lines_of_several_threads_dont_mix(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "agent.log", lambda _kind, _line: None)
    writers = [
        threading.Thread(
            target=lambda word=word: [journal.write(f"{word * 50}\n") for _ in range(50)]
        )
        for word in "abcd"
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    journal.close()
    lines = (tmp_path / "agent.log").read_text().splitlines()
    assert len(lines) == 200
    assert all(len(set(line)) == 1 for line in lines)


def test_a_log_that_cant_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    def refuse(_kind: str, _line: str) -> None:
        raise OSError("the event log is full")

    journal = Journal(tmp_path / "file" / "agent.log", refuse)
    assert journal.write("agentd: trouble\n") == 16


def test_who_asks_the_log_for_a_descriptor_is_told_as_by_any_stream(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "agent.log", lambda _kind, _text: None)
    with pytest.raises(io.UnsupportedOperation):
        journal.fileno()
