"""The programs that the installer put beside each other, and which of them is used.

    <installed>/program-VERSION-TIME/   a whole program: python, lib, setup_agent.py
    <installed>/agentctl.cmd …          what its folder `beside` holds: commands that name it

A program is never changed: the next one gets a folder of its own, whose name
nobody had, and is complete and flushed before a service or a command names it.
So whatever runs goes on with files that belong together.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from feed import durable

PREFIX = "program-"
BESIDE = "beside"
NAME = b"@PROGRAM@"  # in a command: the name of the program's folder
PATIENCE_S = 5.0  # a process that has ended may hold its files for a moment


def place(program: Path) -> None:
    """Have the commands lead to `program`, each in one step. Raises OSError."""
    for source in sorted((program / BESIDE).iterdir()):
        data = source.read_bytes()
        if source.suffix == ".cmd":
            data = data.replace(NAME, program.name.encode())
        target = program.parent / source.name
        if not target.exists() or target.read_bytes() != data:
            durable.replace(target, data, mode=0o644)


def unused(folders: Iterable[str], *, keep: str, command_lines: Iterable[str]) -> list[str]:
    """Which of the folders' names are programs that neither is `keep` nor a service runs."""
    lines = [line.lower() for line in command_lines]
    return [
        name
        for name in sorted(folders)
        if name.startswith(PREFIX)
        and name != keep
        and not any(f"\\{name}\\".lower() in line for line in lines)
    ]


def delete(program: Path, *, patience_s: float = PATIENCE_S) -> bool:
    """Delete a program, or nothing of it while something runs from it; False: it is still there.

    Everything in it is run by its python.exe, which can't be deleted meanwhile.
    """
    until = time.monotonic() + patience_s
    while not _is_idle(program):
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    shutil.rmtree(program, ignore_errors=True)
    return not program.exists()


def _is_idle(program: Path) -> bool:
    try:
        durable.remove(program / "python" / "python.exe")
    except PermissionError:
        return False
    return True
