"""What the installer runs, with the Python of a program that it has laid beside another one.

    python setup_agent.py finish [--from FOLDER]   services; FOLDER has config.toml, root.json
    python setup_agent.py settle                   commands lead here, unused programs go
    python setup_agent.py remove [--purge]

* What ran before goes on, from its own files, until this program is on the disk
  and the services are told of it. An error until then has changed nothing; after
  one, `finish` of the prior program takes the services back.
* The services are made once there is a configuration and a root to go by.
* What didn't run before an upgrade isn't started after it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import winreg
from pathlib import Path
from typing import NamedTuple

import pywintypes
import win32con
import win32file

from agent import config, host, layout
from agent.errors import AgentError
from agent.host.windows_errors import as_os_error
from service.windows import manager, plan, programs

HERE = Path(__file__).resolve().parent
RAN = HERE.parent / "was-running"
PURGE_S = 300.0
LEFT_SHOWN = 10
EXIT_LEFT = 3
BROUGHT = ("config.toml", "root.json")
HIVES = ("SYSTEM\\CurrentControlSet\\Services", "SOFTWARE\\Microsoft")


class _Defaults(NamedTuple):
    state_dir: str | None = None
    runtime_dir: str | None = None
    trust_root: str | None = None


def main() -> int:
    """0 done, 1 refused, 3 removed but for files that are in use."""
    parser = argparse.ArgumentParser(prog="setup_agent")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("finish").add_argument("--from", dest="source", type=Path, default=None)
    commands.add_parser("settle")
    commands.add_parser("remove").add_argument("--purge", action="store_true")
    given = parser.parse_args()
    try:
        if given.command == "finish":
            _finish(given.source)
        elif given.command == "settle":
            _settle()
        else:
            return _remove(purge=given.purge)
    except (AgentError, OSError, pywintypes.error) as error:
        print(f"holdfast: {given.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _finish(source: Path | None) -> None:
    _flush()
    path = layout.default_path()
    manager.prepare_folders(layout.resolve(_Defaults(), path), path.parent)
    for name in BROUGHT if source else ():
        if source and (source / name).exists():
            shutil.copyfile(source / name, path.parent / name)
    if not path.exists():
        shutil.copyfile(HERE / "config.toml", path)
    first = not manager.command_lines()
    if first and not _is_configured(path):
        print(f"Put the source into {path} and root.json beside it, then run: agentctl-service")
        return
    wanted = [service.name for service in plan.SERVICES] if first else _noted() + manager.wanted()
    RAN.write_text("\n".join(wanted), encoding="ascii")  # for another attempt, should this one fail
    manager.install(layout.resolve(_settings(path), path), path, python=sys.executable)
    manager.end()
    manager.start(service.name for service in plan.SERVICES if service.name in wanted)
    RAN.unlink()


def _settings(path: Path) -> config.Config:
    """The configuration; of one that is damaged, where the state is."""
    try:
        return config.load(path)
    except AgentError:
        return config.salvaged(path)


def _noted() -> list[str]:
    """Which services an attempt that failed was to start."""
    return RAN.read_text(encoding="ascii").split() if RAN.exists() else []


def _settle() -> None:
    programs.place(HERE)
    _flush_registry()
    folders = [path.name for path in HERE.parent.iterdir() if path.is_dir()]
    for name in programs.unused(folders, keep=HERE.name, command_lines=manager.command_lines()):
        if not programs.delete(HERE.parent / name):
            print(f"Something runs from {HERE.parent / name}; the next installer deletes it.")


def _remove(*, purge: bool) -> int:
    manager.remove()
    RAN.unlink(missing_ok=True)
    folder = layout.default_path().parent
    return _purge(folder) if purge and folder.exists() else 0


def _purge(folder: Path) -> int:
    """Delete settings and state: 0, or 3 if something stays; an installation would use it again."""
    if host.empty(folder, seconds=PURGE_S):
        folder.rmdir()
        return 0
    left = [str(path) for path in folder.rglob("*") if not path.is_dir()]
    shown = ", ".join(left[:LEFT_SHOWN]) + (", …" if len(left) > LEFT_SHOWN else "")
    print(f"In use, so it stays: {shown}. End what uses it, then delete {folder}.")
    return EXIT_LEFT


def _flush() -> None:
    """Have what the installer wrote on the disk: all of the volume, as running files can't be."""
    try:
        with as_os_error(HERE.drive):
            volume = win32file.CreateFile(
                f"\\\\.\\{HERE.drive}",
                win32con.GENERIC_READ | win32con.GENERIC_WRITE,
                win32con.FILE_SHARE_READ | win32con.FILE_SHARE_WRITE,
                None,
                win32con.OPEN_EXISTING,
                0,
                None,
            )
            win32file.FlushFileBuffers(int(volume))
            volume.Close()
    except OSError as error:
        print(f"{HERE.drive} isn't flushed: {error}; a power cut in the next minute may hurt.")


def _flush_registry() -> None:
    """Have on the disk what says which program is used, before another one is deleted."""
    for hive in HIVES:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, hive) as key:
            winreg.FlushKey(key)


def _is_configured(path: Path) -> bool:
    try:
        found = config.load(path)
    except AgentError:
        return False
    places = layout.resolve(found, path)
    return places.trust_root.is_file() and bool(found.sources or places.enrolment.exists())


if __name__ == "__main__":
    raise SystemExit(main())
