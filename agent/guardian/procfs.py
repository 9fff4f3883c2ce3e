"""Reading processes from Linux's /proc, see proc(5).

Built for one look a second: psutil answers the same with ten times as much
CPU, and doesn't know how long a thread waited for one.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from agent.guardian.processes import Stat

if sys.platform != "linux":
    raise ImportError("/proc as it is read here is Linux's")

STAT_BYTES_MAX = 4096
TASKS_MAX = 512  # of one process; a look stays cheap whatever an engine does


class LinuxProcesses:
    """Start times count from boot, so no clock step touches them."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
        self._page = os.sysconf("SC_PAGE_SIZE")

    def clock(self) -> float:
        """Seconds since boot, sleep included, as start times count."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def pids(self) -> list[int]:
        """Every process that can be seen."""
        return [int(name) for name in _names(self._proc) if name.isdigit()]

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
            tasks = _names(f"{self._proc}/{pid}/task")[:TASKS_MAX]
        except OSError:
            return None
        found = {}
        for task in tasks:
            field = (_read(f"{self._proc}/{pid}/task/{task}/schedstat") or b"").split()
            if len(field) == 3:
                found[int(task)] = int(field[1]) / 1e9
        return found or None


def _names(path: str) -> list[str]:
    return os.listdir(path)  # noqa: PTH208 - four times as fast, and this is every second


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
