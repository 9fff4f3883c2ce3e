"""What the installer runs around the program's files, with the program's own Python.

   python setup_agent.py stop                     before files are replaced
   python setup_agent.py finish [--from FOLDER]   after them; FOLDER has config.toml, root.json
   python setup_agent.py remove [--purge]

* Every user may make folders in ProgramData. One of our name that isn't
  administration's is moved aside: whoever made it could choose what is trusted.
* The services are made once there is a configuration and a root to go by.
* What didn't run before an upgrade isn't started after it.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pywintypes
import win32api
import win32con
import win32security
import win32service
import win32serviceutil

from agent import config, layout
from agent.errors import AgentError
from service.windows import manager, plan

HERE = Path(__file__).resolve().parent
RAN = HERE / "was-running"
STOP_S = 60
TRUSTED_OWNERS = ("S-1-5-18", "S-1-5-32-544")  # SYSTEM, Administrators
BROUGHT = ("config.toml", "root.json")


class _Defaults(NamedTuple):
    state_dir: str | None = None
    runtime_dir: str | None = None
    trust_root: str | None = None


def main() -> int:
    """0 done, 1 refused."""
    parser = argparse.ArgumentParser(prog="setup_agent")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("stop")
    commands.add_parser("finish").add_argument("--from", dest="source", type=Path, default=None)
    commands.add_parser("remove").add_argument("--purge", action="store_true")
    given = parser.parse_args()
    try:
        if given.command == "stop":
            _stop()
        elif given.command == "finish":
            _finish(given.source)
        else:
            _remove(purge=given.purge)
    except (AgentError, OSError, pywintypes.error) as error:
        print(f"holdfast: {given.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _stop() -> None:
    RAN.unlink(missing_ok=True)
    if _state(plan.GUARDIAN) == win32service.SERVICE_RUNNING:
        RAN.touch()
    for name in (plan.GUARDIAN, plan.BOOT_GUARD):
        if _state(name) not in (None, win32service.SERVICE_STOPPED):
            with contextlib.suppress(pywintypes.error):  # the engines that need it run on
                win32serviceutil.StopService(name)
            with contextlib.suppress(pywintypes.error):
                win32serviceutil.WaitForServiceStatus(name, win32service.SERVICE_STOPPED, STOP_S)


def _finish(source: Path | None) -> None:
    path = layout.default_path()
    upgraded = _state(plan.GUARDIAN) is not None
    _move_strangers(path.parent)
    manager.prepare_folders(layout.resolve(_Defaults(), path), path.parent)
    for name in BROUGHT if source else ():
        if source and (source / name).exists():
            shutil.copyfile(source / name, path.parent / name)
    if not path.exists():
        shutil.copyfile(HERE / "config.toml", path)
    if not _is_configured(path):
        print(f"Put the source into {path} and root.json beside it, then run: agentctl-service")
        return
    manager.install(layout.resolve(config.load(path), path), path, python=sys.executable)
    if RAN.exists() or not upgraded:
        win32serviceutil.StartService(plan.GUARDIAN)
    RAN.unlink(missing_ok=True)


def _remove(*, purge: bool) -> None:
    _stop()
    manager.remove()
    if purge:
        shutil.rmtree(layout.default_path().parent, ignore_errors=True)


def _is_configured(path: Path) -> bool:
    try:
        found = config.load(path)
    except AgentError:
        return False
    places = layout.resolve(found, path)
    return places.trust_root.is_file() and bool(found.sources or places.enrolment.exists())


def _move_strangers(folder: Path) -> None:
    """Move `folder` aside unless administration owns it."""
    if not folder.exists():
        return
    wanted = win32security.OWNER_SECURITY_INFORMATION
    owner = win32security.GetFileSecurity(str(folder), wanted).GetSecurityDescriptorOwner()
    if win32security.ConvertSidToStringSid(owner) in (*TRUSTED_OWNERS, _own_sid()):
        return
    aside = folder.with_name(f"{folder.name}.untrusted-{int(time.time())}")
    folder.rename(aside)
    print(f"{folder} wasn't administration's; it is {aside} now, and isn't used")


def _own_sid() -> str:
    """Of who runs this."""
    token = win32security.OpenProcessToken(win32api.GetCurrentProcess(), win32con.TOKEN_QUERY)
    user = win32security.GetTokenInformation(token, win32security.TokenUser)[0]
    return str(win32security.ConvertSidToStringSid(user))


def _state(name: str) -> int | None:
    """The service's state; None: there is no such service."""
    try:
        return int(win32serviceutil.QueryServiceStatus(name)[1])
    except pywintypes.error:
        return None


if __name__ == "__main__":
    raise SystemExit(main())
