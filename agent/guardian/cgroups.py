"""What a systemd unit as a whole uses: its control group, as the kernel accounts it.

A few small files a look, no process: CPU of everything that ever ran in the
group, also of what came and went between two looks, and the memory that is its
own. Reads v2, v1, and machines that have both; what a kernel doesn't account is
None, and the caller adds up processes instead.

 * Page cache is nobody's: an engine that reads many files hasn't grown.
 * A group that was made anew starts at zero; its figures count whole.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

ROOT = Path("/sys/fs/cgroup")
GROUPS_MAX = 64  # of one unit
FILE_BYTES_MAX = 64 << 10

# Where a group's own files are, best first: v2, v2 beside v1, v1 by controller.
_MEMBERS = ("", "unified", "systemd")
_CPU = ("", "unified", "cpuacct", "cpu,cpuacct")
_MEMORY = ("", "memory")


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """A group at one moment; None where this kernel doesn't say."""

    cpu_s: float | None = None
    memory_bytes: int | None = None


class Hierarchy:
    """The control groups below one folder, /sys/fs/cgroup."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root

    def read(self, group: str) -> Reading:
        """What the kernel accounts to `group`, as systemd names it (`/system.slice/x.service`)."""
        return Reading(cpu_s=self._cpu(group), memory_bytes=self._memory(group))

    def members(self, group: str) -> tuple[int, ...]:
        """Processes in the group and in those below it; none where there is no such group."""
        for folder in self._folders(group, _MEMBERS):
            if (folder / "cgroup.procs").exists():
                return tuple(_in_folder(folder))
        return ()

    def _cpu(self, group: str) -> float | None:
        for folder in self._folders(group, _CPU):
            seconds = cpu_of_v2(_text(folder / "cpu.stat"))
            if seconds is None:
                seconds = cpu_of_v1(_text(folder / "cpuacct.usage"))
            if seconds is not None:
                return seconds
        return None

    def _memory(self, group: str) -> int | None:
        for folder in self._folders(group, _MEMORY):
            held = memory_of(_text(folder / "memory.stat"))
            if held is not None:
                return held
        return None

    def _folders(self, group: str, places: tuple[str, ...]) -> list[Path]:
        """Nothing for a name that could lead elsewhere, or that means the whole machine."""
        path = group.strip("/")
        if not path or ".." in Path(path).parts:
            return []
        return [self._root / place / path for place in places]


def cpu_of_v2(text: str) -> float | None:
    """Seconds in a v2 `cpu.stat`."""
    value = _fields(text).get("usage_usec")
    return None if value is None else value / 1e6


def cpu_of_v1(text: str) -> float | None:
    """Seconds in a v1 `cpuacct.usage`, which has nanoseconds."""
    return int(text) / 1e9 if text.strip().isdecimal() else None


def memory_of(text: str) -> int | None:
    """Bytes in a `memory.stat` that are the group's own: anonymous and shared memory.

    v2 says anon; v1 says total_rss, which its total_cache lacks.
    """
    fields = _fields(text)
    own = fields.get("anon", fields.get("total_rss"))
    if own is None:
        return None
    return own + fields.get("shmem" if "anon" in fields else "total_shmem", 0)


class Meter:
    """What one group has used since the last look."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        self._hierarchy = hierarchy
        self._group = ""
        self._cpu_s: float | None = None

    def look(self, group: str) -> Reading:
        """CPU seconds since the last look (none used at the first), memory held now."""
        now = self._hierarchy.read(group) if group else Reading()
        before = self._cpu_s if group == self._group else None
        # A group that is gone for a moment comes back at zero: then all of it is new.
        self._group, self._cpu_s = group, 0.0 if now.cpu_s is None else now.cpu_s
        return msgspec.structs.replace(now, cpu_s=used_s(before, now.cpu_s))


def used_s(before: float | None, now: float | None) -> float | None:
    """Seconds between two readings; a smaller one is of a group that was made anew."""
    if now is None:
        return None
    if before is None:
        return 0.0
    return now - before if now >= before else now


def _fields(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _text(path: Path) -> str:
    """The file's text, "" if it can't be read: the group may have gone meanwhile."""
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX).decode("ascii", "replace")
    except OSError:
        return ""


def _in_folder(folder: Path) -> list[int]:
    found: list[int] = []
    for number, (path, _, _) in enumerate(os.walk(folder)):
        if number >= GROUPS_MAX:
            break
        with contextlib.suppress(OSError):
            found += _numbers(Path(path, "cgroup.procs"))
    return found


def _numbers(path: Path) -> list[int]:
    with path.open("rb") as file:
        data = file.read(FILE_BYTES_MAX)
    whole = data[: data.rfind(b"\n") + 1]  # the limit may have cut the last one
    return [int(item) for item in whole.split()]
