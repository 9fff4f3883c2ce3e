"""The machine as a whole: how busy it is, and whether it has slept."""

from __future__ import annotations

import sys
import time

import msgspec
import psutil

PRESSURE_BYTES_MAX = 512
SUSPEND_S = 1.0  # the two clocks drift apart by less than that while awake


class Busy(msgspec.Struct, frozen=True, kw_only=True):
    """Since the last look. core_s is CPU time of all cores together, niced_s the niced part."""

    share: float
    core_s: float
    niced_s: float = 0.0

    def foreign_share(self, ours_s: float) -> float:
        """The part of `share` that explains slowness: neither `ours_s` nor niced work.

        Niced work mostly gives way. It fills the machine all the same: who gets
        half a core beside it may be asking for all of it.
        """
        foreign_s = self.core_s - ours_s - self.niced_s
        return self.share * foreign_s / self.core_s if foreign_s > 0 else 0.0


class CpuMeter:
    """How busy all cores together were between two looks.

    Time stolen by a hypervisor counts as busy: it is somebody else's.
    """

    def __init__(self) -> None:
        self.cpu_count = psutil.cpu_count() or 1
        self._before = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float]:
        """Busy, total and niced seconds since boot. Guests' time is in user time already."""
        times = psutil.cpu_times()
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        niced = getattr(times, "nice", 0.0) - getattr(times, "guest_nice", 0.0)
        return total - times.idle - getattr(times, "iowait", 0.0), total, niced

    def look(self) -> Busy:
        """Since the last look; 0 if no tick has passed."""
        busy_before, total_before, niced_before = self._before
        self._before = busy, total, niced = self._read()
        total_s = total - total_before
        core_s = max(0.0, busy - busy_before)
        return Busy(
            share=min(1.0, core_s / total_s) if total_s > 0 else 0.0,
            core_s=core_s,
            niced_s=max(0.0, niced - niced_before),
        )


def pressure_share(path: str = "/proc/pressure/cpu") -> float | None:
    """The kernel's share of time in which some task waited for a CPU, None without PSI."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - once a second
            first = file.read(PRESSURE_BYTES_MAX).split(b"\n")[0]
        return float(first.split(b"avg10=")[1].split()[0]) / 100
    except (OSError, IndexError, ValueError):
        return None


class SleepMeter:
    """Tells a machine that slept from a guardian that wasn't run.

    Python's monotonic clock stands still in sleep on Linux and macOS; another
    clock of theirs doesn't. Elsewhere sleep shows as a long gap.
    """

    def __init__(self) -> None:
        self._offset = self._read()

    @staticmethod
    def _read() -> float:
        if sys.platform == "linux":
            return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
        if sys.platform == "darwin":
            return time.clock_gettime(time.CLOCK_MONOTONIC) - time.monotonic()
        return 0.0

    def look(self) -> bool:
        """Whether the machine has slept since the last look."""
        before, self._offset = self._offset, self._read()
        return self._offset - before > SUSPEND_S
