"""Fault points: listed while an agent works, and killed at in a walk.

A point is named by the process that passes it, the step (feed.durable), the
path below the machine's folder, and how often this process has passed it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from tests.support import disks, promises

TALLY = "crash walk"  # the property that tells of one walked step
ENDED = ("Z", "X")  # states of a process that waits to be reaped, or is being
KINDS = ("update", "self-update", "revert", "recovery")

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
    With `cut` (see tests.support.disks) the power of the state folder's disk
    is cut right before. With `promises` they note what a cut must leave.
    """

    folder: str
    record: bool = False
    point: Point | None = None
    victims: tuple[str, ...] = ("self",)
    cut: int | None = None
    promises: bool = False

    def note_process(self, name: str, pid: int) -> None:
        """A process of this machine has started."""
        _, born = _life(pid)
        _append(Path(self.folder, "processes"), f"{name} {pid} {born}\n".encode())

    def note_exit(self, pid: int, code: int) -> None:
        """The guardian has ended by itself."""
        _append(Path(self.folder, "exits"), f"{pid} {code}\n".encode())

    def pass_by(self, here: Point, *, guardian: int) -> None:
        """A process is at `here`."""
        if self.record:
            _append(Path(self.folder, "points"), msgspec.json.encode(here) + b"\n")
        if here != self.point or not self._claim():
            return
        if self.cut is not None:
            promises.power_fails(Path(self.folder))
            disks.cut(Path(self.folder, "state"), self.cut)
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
    note = promises.Notes(Path(folder)).hear if walk.promises else None

    def hook(step: str, where: str) -> None:
        path = os.path.relpath(where, folder)
        if note:
            note(step, path)
        for pattern, word in _NAMES:
            path = pattern.sub(word, path)
        passed[step, path] += 1
        walk.pass_by(Point(name, step, path, passed[step, path]), guardian=guardian)

    return hook


def recorded(folder: Path) -> list[Point]:
    """The points that were listed in `folder`, in order."""
    lines = (folder / "points").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Point) for line in lines]


def alive(folder: Path) -> dict[int, str]:
    """What runs of what was started on the machine in `folder`: {pid: name}."""
    lines = (line.split() for line in (folder / "processes").read_text().splitlines())
    return {int(pid): name for name, pid, born in lines if _is_alive(int(pid), born)}


def is_free(lock: Path) -> bool:
    """Whether nobody holds the lock file, as far as its disk still tells."""
    with contextlib.suppress(OSError), lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _life(pid: int) -> tuple[str, str]:
    """A process's state, and when it began, in the kernel's ticks since the boot: proc_pid_stat(5).

    Raises OSError: there is none.
    """
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return fields[0].decode(), fields[19].decode()


def _is_alive(pid: int, born: str) -> bool:
    try:
        state, began = _life(pid)
    except OSError:
        return False
    return began == born and state not in ENDED


def wait_until(reached: Callable[[], bool], *, seconds: float, interval_s: float = 0.01) -> bool:
    """Whether `reached` came true in time."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval_s)
    return True


def summary(properties: Iterable[tuple[str, Any]], *, failed: int) -> str | None:
    """One line on what was walked; None when there was no walk."""
    points: dict[str, set[str]] = {kind: set() for kind in KINDS}
    falls = 0
    for name, value in properties:
        if name == TALLY:
            kind, course, point = value
            points[kind].add(f"{course} {point}")
            falls += 1
    if not falls:
        return None
    counts = ", ".join(f"{len(points[kind])} points of {_article(kind)}" for kind in KINDS)
    end = "all ended well" if not failed else f"{failed} tests of it failed"
    return f"crash walk: {counts}, {falls} falls; {end}"


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _append(path: Path, line: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)
