"""Find the process that a watch means: by pid file, name, executable or unit.

A process once found is followed by its pid and start time, so a look costs one
small read while it lives. A pid file is read with a limit and never blocks; it
that still names a pid which has become another process names nobody.
"""

from __future__ import annotations

import errno
import os
import stat as modes
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from agent.config import Watch
from agent.guardian import units
from agent.guardian.cgroups import Hierarchy, Meter, Reading
from agent.guardian.commands import Command, Commands
from agent.guardian.processes import COMM_CHARS, Processes, Stat
from agent.guardian.samples import Root
from agent.guardian.table import Table
from agent.guardian.units import Unit

PID_FILE_BYTES_MAX = 64
PID_MAX = 1 << 22  # PID_MAX_LIMIT of Linux; others stay far below
UNIT_QUERY_S = 1.0  # between questions about a unit that isn't running
UNIT_REFRESH_S = 15.0  # and about one that is
UNIT_TIMEOUT_S = 5.0


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The main process, others that belong to it, and why there is none.

    observable is False where this machine can't answer the question at all.
    used is what the kernel itself accounts to all of it since the last look,
    restarts how often the service manager has started it again by itself.
    """

    main: Stat | None = None
    others: tuple[int, ...] = ()
    problem: str = ""
    observable: bool = True
    used: Reading = Reading()
    restarts: int | None = None


class Finder(Protocol):
    """One way of finding a process. wants_scan: the next look must read everybody."""

    wants_scan: bool

    def find(self, table: Table, now: float) -> Found: ...

    def close(self) -> None: ...


def finder(watch: Watch, commands: Commands, own_pids: tuple[int, ...]) -> Finder:
    """The finder for a watch, which the configuration gave exactly one way.

    By name or executable, Holdfast itself and its children are never meant.
    """
    if watch.pid_file is not None:
        return ByPidFile(Path(watch.pid_file))
    if watch.unit is not None:
        return ByUnit(watch.unit, commands)
    return ByMatch(name=watch.process, executable=watch.executable, own_pids=own_pids)


class ByPidFile:
    """The process whose id a file holds."""

    wants_scan = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._root: Root | None = None

    def find(self, table: Table, now: float) -> Found:
        """The file is read again only when it has changed or its process has ended."""
        del now
        stamp = self._stamp_now()
        known = table.running(self._root)
        if known and stamp in (None, self._stamp):
            return Found(main=known)
        pid, problem, _ = read_pid(self._path)
        main = table.stat(pid) if pid else None
        if main is None or main.ended:
            gone = f"{self._path}: process {pid} doesn't run" if pid else problem
            return Found(main=known, problem="" if known else gone)
        if self._root and stamp == self._stamp and main.root != self._root:
            return Found(problem=f"{self._path}: pid {pid} is another process by now")
        self._root, self._stamp = main.root, stamp
        return Found(main=main)

    def _stamp_now(self) -> tuple[int, int, int] | None:
        try:
            entry = self._path.stat()
        except OSError:
            return None
        return (entry.st_ino, entry.st_size, entry.st_mtime_ns)

    def close(self) -> None:
        """Nothing is held."""


class PidFile(NamedTuple):
    """The process id in a file, or None and what is wrong with it; owner is the file's uid."""

    pid: int | None
    problem: str = ""
    owner: int | None = None


def read_pid(path: Path, *, links: bool = True) -> PidFile:
    """What a pid file says; links: one may stand in the file's place."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    flags |= 0 if links else getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP and not links:
            return PidFile(None, f"{path}: is a symbolic link; name the file it leads to")
        return PidFile(None, f"{path}: {error.strerror}")
    try:
        facts = os.fstat(descriptor)
        if not modes.S_ISREG(facts.st_mode):
            return PidFile(None, f"{path}: not a regular file")
        data = os.read(descriptor, PID_FILE_BYTES_MAX + 1)
    except OSError as error:
        return PidFile(None, f"{path}: {error.strerror}")
    finally:
        os.close(descriptor)
    text = data.strip()
    if len(data) > PID_FILE_BYTES_MAX:
        return PidFile(None, f"{path}: more than {PID_FILE_BYTES_MAX} bytes, expected a process id")
    if not text.isdigit() or not 1 < int(text) <= PID_MAX:
        return PidFile(None, f"{path}: holds {data[:20]!r}, expected a process id")
    return PidFile(int(text), owner=facts.st_uid)


class ByMatch:
    """Every process of a name or an executable; the oldest is the main one."""

    def __init__(
        self, *, name: str | None, executable: str | None, own_pids: tuple[int, ...] = ()
    ) -> None:
        self.wants_scan = True
        self._own_pids = own_pids
        self._name = name
        self._executable = executable
        self._root: Root | None = None
        self._others: tuple[int, ...] = ()
        self._scans = -1

    def find(self, table: Table, now: float) -> Found:
        """Looks for others only after a full scan, or when the main one has ended."""
        del now
        main = table.running(self._root)
        if main and self._scans == table.scans:
            return Found(main=main, others=self._others)
        alive = sorted(self._matches(table), key=lambda item: (item.started, item.pid))
        main = main or next(iter(alive), None)
        self._root, self._scans = main.root if main else None, table.scans
        self._others = tuple(item.pid for item in alive)
        self.wants_scan = main is None
        wanted = self._name or self._executable
        return Found(main=main, others=self._others, problem="" if main else f"no {wanted} runs")

    def _matches(self, table: Table) -> list[Stat]:
        """The table's own figures may be as old as its last scan; a match is read again."""
        found = (item for item in table.everybody() if self._is_match(item, table.processes))
        return [now for item in found if (now := table.running(item.root))]

    def _is_match(self, item: Stat, processes: Processes) -> bool:
        if item.pid in self._own_pids or item.parent in self._own_pids:
            return False  # the guardian, its fetcher and its probes may run the same interpreter
        if self._executable is not None:
            path = processes.executable(item.pid)
            return path is not None and path in {
                self._executable,
                os.path.realpath(self._executable),
            }
        if item.name == self._name:
            return True
        cut = len(item.name) >= COMM_CHARS and (self._name or "").startswith(item.name)
        return cut and processes.full_name(item.pid) == self._name

    def close(self) -> None:
        """Nothing is held."""


class ByUnit:
    """A systemd unit: its main process, and all of its control group.

    systemctl is asked beside the loop; its answer is there at the next look.
    Between the questions, files say what lives and what is used. A unit that
    runs without a main process is followed by its oldest one.
    """

    wants_scan = False

    def __init__(self, unit: str, commands: Commands, groups: Hierarchy | None = None) -> None:
        self._unit = unit
        self._commands = commands
        self._groups = groups or Hierarchy()
        self._meter = Meter(self._groups)
        self._systemctl = units.systemctl_path()
        self._query: Command | None = None
        self._asked_at: float | None = None
        self._root: Root | None = None
        self._said = Unit()
        self._problem = f"{unit}: systemd hasn't answered yet"
        self._observable = False  # until systemd has said something

    def find(self, table: Table, now: float) -> Found:
        """Ask again when the main process has ended, and now and then."""
        self._collect(table, now)
        group = self._said.group
        others = self._groups.members(group) if group else ()
        main = table.running(self._root)
        wait_s = UNIT_REFRESH_S if main else UNIT_QUERY_S
        if self._query is None and (self._asked_at is None or now - self._asked_at >= wait_s):
            self._ask(now)
        return Found(
            main=main,
            others=others,
            problem="" if main else self._problem,
            observable=self._observable,
            used=self._meter.look(group),
            restarts=self._said.restarts,
        )

    def _ask(self, now: float) -> None:
        if self._systemctl is None:
            self._problem = f"{self._unit}: there is no systemd here, so it can't be watched"
            return
        self._asked_at = now
        try:
            self._query = self._commands.start((self._systemctl, *units.show(self._unit)))
        except OSError as error:
            self._problem = f"{self._unit}: systemctl: {error.strerror}"

    def _collect(self, table: Table, now: float) -> None:
        if self._query is None:
            return
        status = self._query.poll()
        if status is None:
            if self._asked_at is not None and now - self._asked_at > UNIT_TIMEOUT_S:
                self._commands.kill(self._query)
                self._query, self._problem = None, f"{self._unit}: systemctl doesn't answer"
            return
        output, self._query = self._query.output, None
        if status:
            self._observable = False
            self._problem = f"{self._unit}: systemctl ended with {status}: {output[:200]}"
            return
        self._observable = True
        self._take(units.parse(output), table)

    def _take(self, said: Unit, table: Table) -> None:
        self._said = said
        pid = said.main_pid
        if not pid and said.active == "active":
            if table.running(self._root):
                return
            pid = self._oldest(table)
        main = table.stat(pid) if pid else None
        self._root = main.root if main else None
        self._problem = f"{self._unit}: {said.problem}"

    def _oldest(self, table: Table) -> int:
        found = (table.stat(pid) for pid in self._groups.members(self._said.group))
        alive = [(item.started, item.pid) for item in found if item and not item.ended]
        return min(alive)[1] if alive else 0

    def close(self) -> None:
        """Give up on a question that is being asked."""
        if self._query:
            self._commands.kill(self._query)
            self._query = None
