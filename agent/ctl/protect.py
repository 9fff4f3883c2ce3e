"""agentctl protect: order a unit of systemd behind the boot guard.

Writes one drop-in for the unit, durably, and has systemd read it. Nothing of the
unit itself is changed, and nothing is started or stopped.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from pathlib import Path
from typing import Any

from agent import host
from agent.config import UNIT_NAME
from agent.ctl.client import AskError
from feed import durable

UNITS = Path("/etc/systemd/system")
DROP_IN = "50-holdfast.conf"
GUARD = "holdfast-bootguard.service"
SYSTEMCTL_S = 60.0

_TEXT = """\
# Written by `agentctl protect {unit}`: the boot guard sees to the release first.
# Undo: agentctl protect --remove {unit}
[Unit]
Wants={guard}
After={guard}
"""
_CURES = {
    "masked": f"until `systemctl unmask {GUARD}` nobody sees to the release at boot",
    "not-found": "install the package, or the unit: nobody sees to the release at boot",
}
_LOOK = f"systemctl status {GUARD} says why"


def protect(unit: str, *, folder: Path = UNITS) -> dict[str, Any]:
    """Write the drop-in of `unit`; returns what was done.

    Raises AskError: a bad name, no root, no systemd, a unit that can't wait for the boot
    guard, or a file that can't be written.
    """
    _check(unit)
    _check_order(unit)
    path = _drop_in(unit, folder)
    text = _TEXT.format(unit=unit, guard=GUARD).encode()
    changed = _content(path) != text
    try:
        if changed:
            path.parent.mkdir(mode=0o755, exist_ok=True)
            durable.sync_directory(folder)
            durable.replace(path, text, mode=0o644)
    except OSError as error:
        raise _refused(f"{path}: {error.strerror}") from error
    _reload()
    return _told(unit, path, changed=changed, protected=True)


def unprotect(unit: str, *, folder: Path = UNITS) -> dict[str, Any]:
    """Take the drop-in of `unit` away. Raises AskError, as `protect`."""
    _check(unit)
    path = _drop_in(unit, folder)
    changed = path.exists()
    try:
        if changed:
            durable.remove(path)
            with contextlib.suppress(OSError):  # somebody else's drop-ins are there too
                path.parent.rmdir()
    except OSError as error:
        raise _refused(f"{path}: {error.strerror}") from error
    _reload()
    return _told(unit, path, changed=changed, protected=False)


def sentence(done: dict[str, Any]) -> str:
    """What was done, in words; as many lines as there are things to know."""
    unit, path = done["unit"], done["drop_in"]
    if not done["protected"]:
        text = f"removed {path}" if done["changed"] else f"{unit} wasn't protected"
        return f"{text}; {unit} isn't ordered behind {GUARD} any more"
    text = f"wrote {path}" if done["changed"] else f"{path} was there already"
    lines = [f"{text}; from the next boot on {unit} starts after {GUARD}"]
    if not done["known"]:
        lines.append(f"systemd doesn't know {unit} yet; it is protected once it is installed")
    if done["guard"] != "loaded":
        lines.append(f"{GUARD} is {done['guard']}: {_CURES.get(done['guard'], _LOOK)}")
    return "\n".join([*lines, f"undo: {done['undo']}"])


def _check(unit: str) -> None:
    if not re.search(UNIT_NAME, unit):
        raise _refused(f"{unit!r} isn't a unit's whole name, such as scanner.service")
    if unit.startswith("holdfast-"):
        raise _refused(f"{unit} is Holdfast's own; name the unit of the engine to protect")
    if not host.is_root():
        raise _refused(f"only root may do this: sudo agentctl protect {unit}")


def _check_order(unit: str) -> None:
    """systemd breaks a circle by starting one of its units not at all."""
    before = _shown("Before", unit).split()
    both = sorted({*before} & {*_shown("After", GUARD).split()})
    if both:
        raise _refused(
            f"{unit} starts before {both[0]}, and {GUARD} after it: ordered behind {GUARD}, one "
            f"of them wouldn't start. Take Before={both[0]} out of {unit}"
        )


def _drop_in(unit: str, folder: Path) -> Path:
    return folder / f"{unit}.d" / DROP_IN


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _reload() -> None:
    status, said = _systemctl("daemon-reload")
    if status:
        raise _refused(f"systemctl daemon-reload ended with {status}: {said}")


def _told(unit: str, path: Path, *, changed: bool, protected: bool) -> dict[str, Any]:
    other = "" if not protected else "--remove "
    return {
        "unit": unit,
        "drop_in": str(path),
        "protected": protected,
        "changed": changed,
        "known": _shown("LoadState", unit) not in {"not-found", ""},
        "guard": _shown("LoadState", GUARD),
        "undo": f"agentctl protect {other}{unit}",
    }


def _shown(what: str, unit: str) -> str:
    return _systemctl("show", "-P", what, "--", unit)[1]


def _systemctl(*arguments: str) -> tuple[int, str]:
    """Its exit status and what it said. Raises AskError: it isn't there, or hangs."""
    try:
        done = subprocess.run(
            ["systemctl", *arguments],  # noqa: S607 - root's own PATH
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SYSTEMCTL_S,
            check=False,
        )
    except OSError as error:
        raise _refused(f"this needs systemd, and systemctl can't be run: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise _refused(f"systemctl {arguments[0]} didn't answer in {SYSTEMCTL_S:g} s") from error
    return done.returncode, done.stdout.decode("utf-8", "replace").strip()


def _refused(text: str) -> AskError:
    return AskError(text, reachable=True)
