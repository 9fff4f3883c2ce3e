"""Programs of the Windows installer beside each other: which is used, and which goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from feed import durable
from service.windows import plan, programs

ROOT = "C:\\Program Files\\Holdfast"
NEW, OLD, CUT_OFF = "program-0.2.0-2", "program-0.1.0-1", "program-0.2.0-1"


def _line(name: str) -> str:
    return plan.command_line(f"{ROOT}\\{name}\\python\\python.exe", plan.SERVICES[0], "c.toml")


def _made(root: Path, name: str = OLD) -> Path:
    program = root / name
    for path, text in (
        ("python/python.exe", b"MZ"),
        ("lib/agent.py", b"pass"),
        ("beside/agentctl.cmd", b'@"%~dp0@PROGRAM@\\python\\python.exe" -I %*\r\n'),
        ("beside/uninstall.exe", b"MZ @PROGRAM@"),
    ):
        (program / path).parent.mkdir(parents=True, exist_ok=True)
        (program / path).write_bytes(text)
    return program


def test_a_program_that_a_service_runs_is_kept_and_any_other_goes() -> None:
    folders = [NEW, OLD, CUT_OFF, "photos"]
    kept = {"keep": NEW}
    assert programs.unused(folders, **kept, command_lines=[_line(NEW)]) == [OLD, CUT_OFF]
    assert programs.unused(folders, **kept, command_lines=[_line(OLD.upper())]) == [CUT_OFF]
    assert programs.unused(folders, **kept, command_lines=[]) == [OLD, CUT_OFF]


def test_a_name_that_another_one_begins_with_isnt_that_one() -> None:
    assert programs.unused([OLD], keep=NEW, command_lines=[_line(f"{OLD}5")]) == [OLD]


def test_a_program_in_use_loses_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = _made(tmp_path)
    before = sorted(program.rglob("*"))

    def refuse(path: Path) -> None:
        assert path.name == "python.exe"
        raise PermissionError(5, "in use", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(durable, "remove", refuse)
        assert not programs.delete(program, patience_s=0)
    assert sorted(program.rglob("*")) == before
    assert programs.delete(program)
    assert not program.exists()


def test_what_a_cut_off_deletion_left_goes_with_the_next(tmp_path: Path) -> None:
    program = _made(tmp_path)
    (program / "python" / "python.exe").unlink()
    assert programs.delete(program)
    assert not program.exists()


def test_commands_lead_to_the_program_that_was_placed_last(tmp_path: Path) -> None:
    for name in (OLD, NEW):
        programs.place(_made(tmp_path, name))
        line = f'@"%~dp0{name}\\python\\python.exe" -I %*\r\n'
        assert (tmp_path / "agentctl.cmd").read_bytes() == line.encode()
    assert (tmp_path / "uninstall.exe").read_bytes() == b"MZ @PROGRAM@"


def test_a_command_that_is_right_isnt_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = _made(tmp_path)
    programs.place(program)
    monkeypatch.setattr(durable, "replace", None)
    programs.place(program)
