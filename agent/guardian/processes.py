"""Reading processes: one face, over /proc (procfs) or over psutil where there is none.

A process that ends while it is read is simply not there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Protocol

import msgspec
import psutil

from agent.guardian.samples import Root

COMM_CHARS = 15  # Linux keeps no more of a name


class Stat(msgspec.Struct, frozen=True, gc=False):
    """One process at one moment.

    started is on the clock of Processes.clock. own_s is CPU time of all its
    threads, reaped_s that of children it has waited for, theirs included.
    """

    pid: int
    parent: int
    name: str
    started: float
    own_s: float
    reaped_s: float
    rss_bytes: int
    threads: int
    ended: bool = False  # a zombie: its figures are final

    @property
    def root(self) -> Root:
        """Which life of this pid it is."""
        return Root(self.pid, self.started)


class Processes(Protocol):
    """What the guardian asks the OS about processes; None where there is no answer."""

    def clock(self) -> float: ...

    def pids(self) -> Sequence[int]: ...

    def stat(self, pid: int) -> Stat | None: ...

    def executable(self, pid: int) -> str | None: ...

    def full_name(self, pid: int) -> str | None: ...

    def waited_s(self, pid: int) -> dict[int, float] | None: ...


def reader() -> Processes:
    """The cheapest one for this platform."""
    if sys.platform == "linux":
        from agent.guardian.procfs import LinuxProcesses  # noqa: PLC0415 - exists on Linux only

        return LinuxProcesses()
    return PsutilProcesses()


class PsutilProcesses:
    """Windows, macOS and whatever else psutil knows."""

    def clock(self) -> float:
        """Unix seconds, as psutil gives start times."""
        return time.time()

    def pids(self) -> list[int]:
        """Every process that can be seen."""
        return list(psutil.pids())

    def stat(self, pid: int) -> Stat | None:
        """One process, None if it is gone or not ours to read."""
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                times = process.cpu_times()
                return Stat(
                    pid=pid,
                    parent=process.ppid(),
                    name=process.name(),
                    started=process.create_time(),
                    own_s=times.user + times.system,
                    reaped_s=getattr(times, "children_user", 0.0)
                    + getattr(times, "children_system", 0.0),
                    rss_bytes=process.memory_info().rss,
                    threads=process.num_threads(),
                    ended=process.status() == psutil.STATUS_ZOMBIE,
                )
        except (psutil.Error, OSError):
            return None

    def executable(self, pid: int) -> str | None:
        """Its program file."""
        try:
            return str(psutil.Process(pid).exe()) or None
        except (psutil.Error, OSError):
            return None

    def full_name(self, pid: int) -> str | None:
        """psutil's name is whole already."""
        try:
            return str(psutil.Process(pid).name())
        except (psutil.Error, OSError):
            return None

    def waited_s(self, pid: int) -> dict[int, float] | None:
        """Not known here."""
        del pid
        return None
