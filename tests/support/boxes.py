"""A part of the machine that may be brought to its knees: control groups with limits.

    with Box(pids=200, memory_bytes=400 << 20, cores=1.0) as box:
        endpoint.start(*box.prefix)       # what runs in the box shares its limits

Control groups of version 1, as root: elsewhere `missing` says why not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TALLY = "pressed machine"  # the property that tells of one revert: what pressed, seconds, reason
GROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = ("pids", "memory", "cpu")
PERIOD_US = 100_000
EMPTY_S = 20.0


def missing() -> str:
    """Why there can be no box here, for a skip; empty when there can."""
    if os.geteuid() != 0:
        return "control groups need root"
    absent = [
        name for name in CONTROLLERS if not os.access(GROUPS / name / "cgroup.procs", os.W_OK)
    ]
    return f"needs control groups of version 1: {', '.join(absent)}" if absent else ""


class Box:
    """See the module. What still runs in it at the end is killed."""

    def __init__(self, *, pids: int, memory_bytes: int, cores: float) -> None:
        self._limits = {
            "pids": {"pids.max": pids},
            "memory": {"memory.limit_in_bytes": memory_bytes},
            "cpu": {
                "cpu.cfs_period_us": PERIOD_US,
                "cpu.cfs_quota_us": int(cores * PERIOD_US),
            },
        }
        self._name = f"holdfast-{os.getpid()}-{time.monotonic_ns()}"

    def _group(self, controller: str) -> Path:
        return GROUPS / controller / self._name

    @property
    def prefix(self) -> tuple[str, ...]:
        """Before a command line: the command runs in the box."""
        entries = " ".join(str(self._group(name) / "cgroup.procs") for name in CONTROLLERS)
        return ("sh", "-c", f'for e in {entries}; do echo $$ > $e; done; exec "$@"', "sh")

    @property
    def processes(self) -> list[int]:
        """What runs in the box."""
        return [int(line) for line in (self._group("pids") / "cgroup.procs").read_text().split()]

    def refused(self) -> dict[str, int]:
        """How often a process got no other one, and how many were killed for memory."""
        forks = (self._group("pids") / "pids.events").read_text().split()
        killed = (self._group("memory") / "memory.oom_control").read_text().split()
        return {
            "forks refused": int(forks[forks.index("max") + 1]),
            "killed for memory": int(killed[killed.index("oom_kill") + 1]),
        }

    def __enter__(self) -> Self:
        for controller, limits in self._limits.items():
            group = self._group(controller)
            group.mkdir()
            for name, value in limits.items():
                (group / name).write_text(str(value))
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
        for controller in CONTROLLERS:
            _remove(self._group(controller), deadline)


def _remove(group: Path, deadline: float) -> None:
    """A group can be removed once the kernel has seen off its last process."""
    while True:
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def summary(properties: Iterable[tuple[str, Any]]) -> str | None:
    """One line on how long reverts took; None when there was none."""
    found = [value for name, value in properties if name == TALLY]
    if not found:
        return None
    each = "; ".join(f"{what} {seconds:.1f} s ({reason})" for what, seconds, reason in found)
    return f"from flip to revert on a pressed machine: {each}"
