"""Systemd's units: what `systemctl show` says of one, and how a hook makes it take a release.

Pure but for `systemctl_path`: decisions are made on what was said.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

PROPERTIES = "LoadState,ActiveState,Result,MainPID,ControlGroup,NRestarts"


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """A unit as systemd sees it. main_pid is 0 and group "" where there is none."""

    load: str = ""
    active: str = ""
    result: str = ""
    main_pid: int = 0
    group: str = ""
    restarts: int | None = None

    @property
    def problem(self) -> str:
        """Why it has no process, in words; it is for units that have none."""
        if self.load == "not-found":
            return "there is no such unit"
        if self.active == "failed":
            return f"failed (result: {self.result or 'unknown'})"
        return f"no main process ({self.active or 'unknown'})"


def parse(output: str) -> Unit:
    """What `systemctl show -p PROPERTIES` printed; what it lacks has its default."""
    said = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
    values = {key: value.strip() for key, value in said.items()}
    pid, restarts = values.get("MainPID", ""), values.get("NRestarts", "")
    return Unit(
        load=values.get("LoadState", ""),
        active=values.get("ActiveState", ""),
        result=values.get("Result", ""),
        main_pid=int(pid) if pid.isdecimal() else 0,
        group=values.get("ControlGroup", ""),
        restarts=int(restarts) if restarts.isdecimal() else None,
    )


def steps(unit: Unit, name: str, *, verb: str, reason: str) -> tuple[tuple[str, ...], ...] | None:
    """systemctl's arguments, one call after the other, that make the unit take a release.

    verb is reload or restart, reason flip or revert. None: it isn't running and takes
    the release when it starts. One that the release has killed is brought back by
    a revert, whatever the verb; an administrator's stop is left alone.
    """
    if unit.active == "active":
        return ((verb, "--", name),)
    if unit.active in {"reloading", "activating"}:
        verb = "restart" if reason == "revert" else verb
        return ((verb, "--", name),)
    if unit.active == "failed" and reason == "revert":
        return (("reset-failed", "--", name), ("restart", "--", name))
    return None


def show(name: str) -> tuple[str, ...]:
    """systemctl's arguments that ask for what `parse` reads."""
    return ("show", "--no-pager", "-p", PROPERTIES, "--", name)


def systemctl_path() -> str | None:
    """The program on the PATH; shutil would cost a megabyte for this."""
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        path = Path(folder, "systemctl")
        if folder and os.access(path, os.X_OK):
            return str(path)
    return None
