"""Fault points: listed while an agent works, and killed at in a walk.

A point is named by the process that passes it, the step (feed.durable), the
path below the machine's folder, and how often this process has passed it.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil

_NAMES = (  # what is drawn by lot for each attempt
    (re.compile(r"incoming/[0-9a-f]{16}"), "incoming/<attempt>"),
    (re.compile(r"evidence/[0-9a-f]{16}"), "evidence/<attempt>"),
)


class Point(msgspec.Struct, frozen=True):
    """See the module."""

    process: str
    step: str
    path: str
    time: int

    def __str__(self) -> str:
        return f"{self.process}: {self.step} {self.path} ({self.time})"


class Walk(msgspec.Struct, frozen=True, kw_only=True):
    """What the processes of one machine do at their fault points.

    They list them in `record`, if given. The first that passes `point` kills
    `victims`: itself, the guardian, or both; that happens once in `folder`.
    """

    folder: str
    record: bool = False
    point: Point | None = None
    victims: tuple[str, ...] = ("self",)

    def note_process(self, name: str, pid: int) -> None:
        """A process of this machine has started."""
        _append(Path(self.folder, "processes"), f"{name} {pid}\n".encode())

    def note_exit(self, pid: int, code: int) -> None:
        """The guardian has ended by itself."""
        _append(Path(self.folder, "exits"), f"{pid} {code}\n".encode())

    def pass_by(self, here: Point, *, guardian: int) -> None:
        """A process is at `here`."""
        if self.record:
            _append(Path(self.folder, "points"), msgspec.json.encode(here) + b"\n")
        if here != self.point or not self._claim():
            return
        if "guardian" in self.victims:
            os.kill(guardian, signal.SIGKILL)
        if "self" in self.victims:
            os.kill(os.getpid(), signal.SIGKILL)

    def _claim(self) -> bool:
        try:
            Path(self.folder, "fired").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def fault_hook(walk: Walk, name: str, *, guardian: int) -> Callable[[str, str], None]:
    """The hook for feed.durable in the process called `name`."""
    passed: Counter[tuple[str, str]] = Counter()
    folder = os.path.realpath(walk.folder)

    def hook(step: str, where: str) -> None:
        path = os.path.relpath(where, folder)
        for pattern, word in _NAMES:
            path = pattern.sub(word, path)
        passed[step, path] += 1
        walk.pass_by(Point(name, step, path, passed[step, path]), guardian=guardian)

    return hook


def recorded(folder: Path) -> list[Point]:
    """The points that were listed in `folder`, in order."""
    lines = (folder / "points").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Point) for line in lines]


def processes(folder: Path) -> dict[int, str]:
    """What was started on the machine in `folder`: {pid: name}."""
    pairs = (line.split() for line in (folder / "processes").read_text().splitlines())
    return {int(pid): name for name, pid in pairs}


def alive(pid: int) -> bool:
    """Whether a process still does anything."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(reached: Callable[[], bool], *, seconds: float, interval_s: float = 0.01) -> bool:
    """Whether `reached` came true in time."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval_s)
    return True


def _append(path: Path, line: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)
