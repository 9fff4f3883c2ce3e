"""Who is whose child, and what a tree of processes has used since the last look.

* A process that was once seen below a root stays counted while it lives, also
  when it detached itself.
* CPU of children that came and went between two looks is found in what their
  parents have reaped; what was already counted of them is taken off.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import msgspec

from agent.guardian.processes import Processes, Stat
from agent.guardian.samples import Root, TopProcess

SCAN_S = 5.0  # between full scans
SCAN_SHARE_MAX = 0.003  # of a core for full scans; with thousands of processes they get rarer
NEW_SLACK_S = 0.05  # start times have the kernel's tick
TOP = 8


class Table:
    """The processes of this machine as of the last look."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.scans = 0
        self.top: tuple[TopProcess, ...] = ()
        self._known: dict[int, Stat] = {}
        self._fresh: dict[int, Stat | None] = {}
        self._children: dict[int, list[int]] = {}
        self._scanned: dict[int, Stat] = {}
        self._scanned_at: float | None = None
        self._scan_every_s = SCAN_S

    def look(self, now: float, *, whole: bool = False) -> None:
        """Notice who came and who went; `whole`, or now and then, read everybody."""
        self._fresh.clear()
        if whole or self._scanned_at is None or now - self._scanned_at >= self._scan_every_s:
            self._scan(now)
        else:
            pids = self.processes.pids()
            known = self._known
            found = {pid: known.get(pid) or self.stat(pid) for pid in pids}
            self._known = {pid: stat for pid, stat in found.items() if stat}
        self._children = {}
        for stat in self._known.values():
            self._children.setdefault(stat.parent, []).append(stat.pid)

    def _scan(self, now: float) -> None:
        began = time.perf_counter()
        found = {pid: self.stat(pid) for pid in self.processes.pids()}
        self._known = {pid: stat for pid, stat in found.items() if stat}
        if self._scanned_at is not None and now > self._scanned_at:
            self.top = busiest(self._scanned, self._known, now - self._scanned_at)
        self._scanned, self._scanned_at = self._known, now
        self._scan_every_s = max(SCAN_S, (time.perf_counter() - began) / SCAN_SHARE_MAX)
        self.scans += 1

    def stat(self, pid: int) -> Stat | None:
        """A process as it is at this look, None if it is gone."""
        if pid not in self._fresh:
            self._fresh[pid] = self.processes.stat(pid)
        return self._fresh[pid]

    def running(self, root: Root | None) -> Stat | None:
        """The process if that very life of it still runs."""
        stat = self.stat(root.pid) if root else None
        return stat if stat and stat.root == root and not stat.ended else None

    def everybody(self) -> Iterable[Stat]:
        """All processes; figures may be as old as the last scan."""
        return self._known.values()

    def children(self, pid: int) -> list[int]:
        """Direct children of a process."""
        return self._children.get(pid, [])


def busiest(
    before: Mapping[int, Stat], after: Mapping[int, Stat], elapsed_s: float
) -> tuple[TopProcess, ...]:
    """The processes that used the most CPU between two scans, busiest first."""
    shares = []
    for pid, stat in after.items():
        past = before.get(pid)
        spent = stat.own_s - (past.own_s if past and past.started == stat.started else 0.0)
        if spent > 0:
            shares.append(TopProcess(stat.name, pid, round(spent / elapsed_s, 3)))
    return tuple(sorted(shares, key=lambda item: -item.share)[:TOP])


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a tree used since the last look, in seconds, and holds now."""

    cpu_s: float = 0.0
    waited_s: float = 0.0
    rss_bytes: int = 0
    threads: int = 0
    pids: tuple[int, ...] = ()


class Tree:
    """One or more roots and everything that was ever seen below them."""

    def __init__(self) -> None:
        self._members: dict[int, Stat] = {}
        self._waited: dict[tuple[int, int], float] | None = None
        self._looked_at: float | None = None

    def look(
        self,
        table: Table,
        roots: Iterable[int],
        *,
        count_waiting: bool,
        without: frozenset[int] = frozenset(),
    ) -> Usage:
        """What it used since the last look. The first look finds nothing used.

        count_waiting: also read how long its threads waited for a CPU. without
        are processes that somebody else counts, with what is below them.
        """
        before, since = self._members, self._looked_at
        self._looked_at = table.processes.clock()
        self._members = now = self._gather(table, roots, without)
        return Usage(
            cpu_s=spent_s(before, now, since=since),
            waited_s=self._waited_since(table) if count_waiting else self._forget_waiting(),
            rss_bytes=sum(item.rss_bytes for item in now.values()),
            threads=sum(item.threads for item in now.values()),
            pids=tuple(now),
        )

    @property
    def lives(self) -> tuple[Root, ...]:
        """Who belonged to it at the last look."""
        return tuple(stat.root for stat in self._members.values())

    def _gather(
        self, table: Table, roots: Iterable[int], without: frozenset[int]
    ) -> dict[int, Stat]:
        lives = {pid for pid, past in self._members.items() if _is_same(table.stat(pid), past)}
        waiting, found = [*roots, *lives], {}
        while waiting:
            pid = waiting.pop()
            stat = None if pid in found or pid in without else table.stat(pid)
            if stat:
                found[pid] = stat
                waiting.extend(table.children(pid))
        return found

    def _waited_since(self, table: Table) -> float:
        before, self._waited = self._waited, {}
        for pid in self._members:
            for task, seconds in (table.processes.waited_s(pid) or {}).items():
                self._waited[pid, task] = seconds
        if before is None:
            return 0.0
        return sum(max(0.0, now - before.get(key, now)) for key, now in self._waited.items())

    def _forget_waiting(self) -> float:
        self._waited = None
        return 0.0


def _is_same(now: Stat | None, past: Stat) -> bool:
    return now is not None and now.started == past.started


def spent_s(before: Mapping[int, Stat], after: Mapping[int, Stat], *, since: float | None) -> float:
    """CPU seconds that a tree used between two looks.

    `since` is the earlier look on the clock of start times: what started later
    counts whole, what was merely found later counts from now on. A member that
    ended outside the tree's sight takes its last fraction of a second along.
    """
    if since is None:
        return 0.0
    used = reaped = 0.0
    for pid, stat in after.items():
        past = before.get(pid)
        if past and past.started == stat.started:
            used += stat.own_s - past.own_s
            reaped += stat.reaped_s - past.reaped_s
        elif stat.started >= since - NEW_SLACK_S:
            used += stat.own_s
            reaped += stat.reaped_s
    counted = sum(
        past.own_s + past.reaped_s
        for pid, past in before.items()
        if not _is_same(after.get(pid), past)
    )
    return max(0.0, used) + max(0.0, reaped - counted)
