"""A part of the machine that may be brought to its knees: control groups with limits.

    with Box(Limits(pids=200, memory_bytes=400 << 20, cores=1.0)) as box:
        endpoint.start(*box.prefix)       # what runs in the box shares its limits

As root. Each controller is used where this machine has it: in a hierarchy of its own
(version 1) or in the one of version 2; a machine may have some of each.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TALLY = "pressed machine"  # the property that tells of one revert: what pressed, seconds, reason
GROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = ("pids", "memory", "cpu")
PERIOD_US = 100_000
EMPTY_S = 20.0
SWAP = "memory.swap.max"  # kernels that don't account swap lack it
COUNTERS = {
    ("pids", 1): ("pids.events", "max"),
    ("pids", 2): ("pids.events", "max"),
    ("memory", 1): ("memory.oom_control", "oom_kill"),
    ("memory", 2): ("memory.events", "oom_kill"),
}


@dataclass(frozen=True)
class Limits:
    """What may be had in a box: processes and threads, bytes, processors."""

    pids: int
    memory_bytes: int
    cores: float


@dataclass(frozen=True)
class Home:
    """Where groups of one controller are made: a folder, and the version of its files."""

    folder: Path
    version: int


def unified(root: Path = GROUPS) -> Path | None:
    """The hierarchy of version 2, alone or beside those of version 1; None: there is none."""
    for folder in (root / "unified", root):
        if (folder / "cgroup.controllers").exists() and (folder / "cgroup.procs").exists():
            return folder
    return None


def homes(root: Path = GROUPS) -> dict[str, Home]:
    """Where this machine has each controller; one that it hasn't is left out."""
    second = unified(root)
    offered = (second / "cgroup.controllers").read_text().split() if second else []
    found = {}
    for controller in CONTROLLERS:
        if second and controller in offered:
            found[controller] = Home(second, 2)
        elif (root / controller / "cgroup.procs").exists():
            found[controller] = Home(root / controller, 1)
    return found


def words(controller: str, version: int, limits: Limits) -> dict[str, str]:
    """What is written to which files of a group, in order."""
    quota_us = int(limits.cores * PERIOD_US)
    return {
        ("pids", 1): {"pids.max": f"{limits.pids}"},
        ("pids", 2): {"pids.max": f"{limits.pids}"},
        ("memory", 1): {"memory.limit_in_bytes": f"{limits.memory_bytes}"},
        ("memory", 2): {"memory.max": f"{limits.memory_bytes}", SWAP: "0"},
        ("cpu", 1): {"cpu.cfs_period_us": f"{PERIOD_US}", "cpu.cfs_quota_us": f"{quota_us}"},
        ("cpu", 2): {"cpu.max": f"{quota_us} {PERIOD_US}"},
    }[controller, version]


def refusals(controller: str, version: int, text: str) -> int:
    """How often a limit was met, as a group's file COUNTERS[controller, version] says."""
    _, word = COUNTERS[controller, version]
    said = text.split()
    return int(said[said.index(word) + 1])


def missing(root: Path = GROUPS) -> str:
    """Why there can be no box here, for a skip; empty when there can."""
    if os.geteuid() != 0:
        return "control groups need root"
    found = homes(root)
    if absent := [name for name in CONTROLLERS if name not in found]:
        return f"no control groups for {', '.join(absent)} in {root}"
    try:
        for controller, home in found.items():
            _hand_down(controller, home)
    except OSError as error:
        return f"no control groups can be made here: {error}"
    return ""


def _hand_down(controller: str, home: Home) -> None:
    """Let groups in `home` have the controller; in version 2 that has to be said."""
    if home.version == 2:
        control = home.folder / "cgroup.subtree_control"
        if controller not in control.read_text().split():
            control.write_text(f"+{controller}")
    elif not os.access(home.folder / "cgroup.procs", os.W_OK):
        raise PermissionError(f"{home.folder} can't be written")


class Box:
    """See the module. What still runs in it at the end is killed."""

    def __init__(self, limits: Limits, *, root: Path = GROUPS) -> None:
        self._limits = limits
        self._homes = homes(root)
        self._name = f"holdfast-{os.getpid()}-{time.monotonic_ns()}"

    def _group(self, controller: str) -> Path:
        return self._homes[controller].folder / self._name

    @property
    def _groups(self) -> Sequence[Path]:
        """One for each hierarchy."""
        return list(dict.fromkeys(self._group(name) for name in CONTROLLERS))

    @property
    def inside(self) -> Path | None:
        """The box in the hierarchy of version 2, to make groups in; None: it isn't there."""
        second = [name for name, home in self._homes.items() if home.version == 2]
        return self._group(second[0]) if second else None

    @property
    def prefix(self) -> tuple[str, ...]:
        """Before a command line: the command runs in the box."""
        entries = " ".join(str(group / "cgroup.procs") for group in self._groups)
        entering = f"for e in {entries}; do echo $$ > $e || exit 1; done"
        return ("sh", "-c", f'{entering}; exec "$@"', "sh")

    @property
    def processes(self) -> list[int]:
        """What runs in the box."""
        return [int(line) for text in self._said("pids", "cgroup.procs") for line in text.split()]

    def _said(self, controller: str, name: str) -> Iterator[str]:
        """What the files of that name say, but for groups that have just been removed."""
        for folder, _, names in os.walk(self._group(controller)):
            if name in names:
                with contextlib.suppress(OSError):
                    yield Path(folder, name).read_text()

    def refused(self) -> dict[str, int]:
        """How often a process got no other one, and how many were killed for memory.

        Kernels differ in which group they count a refusal, the one with the limit or
        the process's own, or in both: more than none is what can be relied upon.
        """
        return {
            "forks refused": self._refusals("pids"),
            "killed for memory": self._refusals("memory"),
        }

    def _refusals(self, controller: str) -> int:
        version = self._homes[controller].version
        texts = self._said(controller, COUNTERS[controller, version][0])
        return sum(refusals(controller, version, text) for text in texts)

    def __enter__(self) -> Self:
        for group in self._groups:
            group.mkdir()
        for controller, home in self._homes.items():
            _hand_down(controller, home)
            group = self._group(controller)
            for name, value in words(controller, home.version, self._limits).items():
                if name != SWAP or (group / name).exists():
                    (group / name).write_text(value)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        (self._group("pids") / "pids.max").write_text("0")  # nothing is born while it ends
        deadline = time.monotonic() + EMPTY_S
        while (left := self.processes) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        for group in self._groups:
            remove(group)


def remove(group: Path, *, seconds: float = EMPTY_S) -> None:
    """Remove a group and those in it, once the kernel has seen off their last process.

    Raises OSError when that takes longer than `seconds`.
    """
    deadline = time.monotonic() + seconds
    for path in [*sorted(group.rglob("*/"), reverse=True), group]:
        while path.exists():
            try:
                path.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


def summary(properties: Iterable[tuple[str, Any]]) -> str | None:
    """One line on how long reverts took; None when there was none."""
    found = [value for name, value in properties if name == TALLY]
    if not found:
        return None
    each = "; ".join(f"{what} {seconds:.1f} s ({reason})" for what, seconds, reason in found)
    return f"from flip to revert on a pressed machine: {each}"
