"""Reading processes: one face over /proc, and over psutil where there is none.

Built for one look a second: on Linux a look lists /proc, reads one small file
of each process it follows and of each one that is new, and everything only now
and then. A process that ends while it is read is simply not there.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import psutil

from agent.guardian.samples import Root

STAT_BYTES_MAX = 4096
TASKS_MAX = 512  # of one process; a look stays cheap whatever an engine does
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
    return LinuxProcesses() if sys.platform == "linux" else PsutilProcesses()


class LinuxProcesses:
    """See proc(5). Start times count from boot, so no clock step touches them."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
        self._page = os.sysconf("SC_PAGE_SIZE")

    def clock(self) -> float:
        """Seconds since boot, sleep included, as start times count."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def pids(self) -> list[int]:
        """Every process that can be seen."""
        return [int(name) for name in os.listdir(self._proc) if name.isdigit()]  # noqa: PTH208 - four times as fast

    def stat(self, pid: int) -> Stat | None:
        """One process, None if it is gone."""
        data = _read(f"{self._proc}/{pid}/stat")
        return self._parse(pid, data) if data else None

    def _parse(self, pid: int, data: bytes) -> Stat | None:
        """A name may hold spaces and brackets: the last bracket ends it."""
        start, end = data.find(b"("), data.rfind(b")")
        field = data[end + 2 :].split()
        if len(field) < 22:
            return None
        tick = self._tick_s
        return Stat(
            pid=pid,
            parent=int(field[1]),
            name=data[start + 1 : end].decode("utf-8", "replace"),
            started=int(field[19]) * tick,
            own_s=(int(field[11]) + int(field[12])) * tick,
            reaped_s=(int(field[13]) + int(field[14])) * tick,
            rss_bytes=max(0, int(field[21])) * self._page,
            threads=int(field[17]),
            ended=field[0] in (b"Z", b"X"),
        )

    def executable(self, pid: int) -> str | None:
        """Its program file, also when that has been replaced on disk since."""
        try:
            path = Path(f"{self._proc}/{pid}/exe").readlink()
            return str(path).removesuffix(" (deleted)")
        except OSError:
            return None

    def full_name(self, pid: int) -> str | None:
        """The name of the program as it was called, for names that comm cuts."""
        data = _read(f"{self._proc}/{pid}/cmdline")
        if not data:
            return None
        return data.split(b"\0")[0].rpartition(b"/")[2].decode("utf-8", "replace")

    def waited_s(self, pid: int) -> dict[int, float] | None:
        """Seconds that each thread has waited for a CPU, {thread: seconds}."""
        try:
            tasks = os.listdir(f"{self._proc}/{pid}/task")[:TASKS_MAX]  # noqa: PTH208
        except OSError:
            return None
        found = {}
        for task in tasks:
            field = (_read(f"{self._proc}/{pid}/task/{task}/schedstat") or b"").split()
            if len(field) == 3:
                found[int(task)] = int(field[1]) / 1e9
        return found or None


def _read(path: str) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(descriptor, STAT_BYTES_MAX)
    except OSError:  # ESRCH: it ended between open and read
        return None
    finally:
        os.close(descriptor)


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
