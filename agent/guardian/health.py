"""Look at the watched processes, their probes and the machine, without waiting.

One Sample a look, about once a second before and after a flip, once a minute
while nothing is in progress. What a sample means is verdict's business.

 * Nothing here blocks: probes and systemctl run beside the loop.
 * Everything is timed on the monotonic clock.
 * A machine that can't answer a question (no systemd, no /proc) yields fewer
   figures, never wrong ones.
"""

from __future__ import annotations

import os
from collections.abc import Collection

import msgspec

from agent.config import Watch
from agent.guardian.cgroups import Reading
from agent.guardian.commands import Commands
from agent.guardian.finders import Found, finder
from agent.guardian.machine import CpuMeter, SleepMeter, pressure_share
from agent.guardian.probes import Probes
from agent.guardian.processes import Processes, reader
from agent.guardian.samples import (
    Census,
    Headcount,
    MachineSample,
    ProcessSample,
    Root,
    Sample,
    TopProcess,
)
from agent.guardian.table import Table, Tree, Usage

FRESH_S = 0.2  # a look sooner than that would measure the kernel's clock tick
CROWDED_SHARE = 0.9  # of all cores; from here on waiting for a CPU is measured too


class _Eye:
    """One watch: how it is found, and the tree below it."""

    def __init__(self, watch: Watch, commands: Commands, own_pids: tuple[int, ...]) -> None:
        self.watch = watch
        self.finder = finder(watch, commands, own_pids)
        self.tree = Tree()
        self.found = Found()
        self.usage = Usage()

    def look(self, table: Table, now: float, *, crowded: bool) -> Usage:
        self.found = self.finder.find(table, now)
        main = (self.found.main.pid,) if self.found.main else ()
        tree = self.tree.look(table, (*main, *self.found.others), count_waiting=crowded)
        self.usage = _as_accounted(tree, self.found.used)
        return self.usage


def _as_accounted(tree: Usage, group: Reading) -> Usage:
    """The kernel's own account of a unit knows of processes that no look has seen."""
    return msgspec.structs.replace(
        tree,
        cpu_s=tree.cpu_s if group.cpu_s is None else group.cpu_s,
        rss_bytes=tree.rss_bytes if group.memory_bytes is None else group.memory_bytes,
    )


class Prober:
    """See the module. Looks at `watches`; `own_pids` are Holdfast's own roots.

    `last` is the latest look, for whoever only wants to show it.
    """

    def __init__(
        self,
        watches: Collection[Watch],
        own_pids: Collection[int] | None = None,
        *,
        processes: Processes | None = None,
    ) -> None:
        self._commands = Commands(_environment())
        self._own_pids = tuple(own_pids) if own_pids is not None else (os.getpid(),)
        self._eyes = [_Eye(watch, self._commands, self._own_pids) for watch in watches]
        self._probes = Probes(watches, self._commands)
        self._own = Tree()
        self._table = Table(processes or reader())
        self._cpu = CpuMeter()
        self._sleep = SleepMeter()
        self.last: Sample | None = None

    def start(self) -> None:
        """Begin to ask the probes: the machine is to be watched closely."""
        self._probes.start()

    def stop(self) -> None:
        """Ask no more probes; idle looks go on."""
        self._probes.stop()

    def close(self) -> None:
        """Give everything back; probes that still run are killed."""
        self._probes.stop()
        for eye in self._eyes:
            eye.finder.close()
        self._commands.close()

    def poll(self, now: float) -> float | None:
        """Move probes along; seconds until the next call is worth it, None for never.

        sample() does it too; in between it makes answers arrive when they come.
        """
        self._commands.sweep()
        return self._probes.poll(now)

    def sample(self, now: float, *, source_reachable: bool | None = None) -> Sample:
        """One look, at the monotonic time `now`."""
        self.poll(now)
        seen = self._look(now, source_reachable=source_reachable)
        self.last = msgspec.structs.replace(seen, probes=self._probes.take())
        return self.last

    def baseline_tick(self, now: float, *, source_reachable: bool | None = None) -> Sample:
        """A cheap look that asks no probe: what was used since the last look, however long.

        A look that was made just now is given again. Answers of probes stay
        where they are, for the next sample().
        """
        if self.last and now - self.last.monotonic_s < FRESH_S:
            return self.last
        return self._look(now, source_reachable=source_reachable)

    def census(self, now: float) -> Census:
        """A look at everybody, however short ago the last one was.

        Raises OSError: there is no telling who runs.
        """
        self._look(now, source_reachable=None, whole=True)
        return Census(
            threads=sum(stat.threads for stat in self._table.everybody()),
            watches=tuple(
                Headcount(eye.watch.name, eye.usage.threads, eye.tree.lives) for eye in self._eyes
            ),
        )

    def life_of(self, pid: int) -> Root | None:
        """Who has this number now, not as of the last look; None: nobody, or no telling."""
        stat = self._table.processes.stat(pid)
        return stat.root if stat else None

    def _look(self, now: float, *, source_reachable: bool | None, whole: bool = False) -> Sample:
        elapsed_s = max(0.0, now - self.last.monotonic_s) if self.last else 0.0
        suspended = self._sleep.look()
        busy = self._cpu.look()
        self._table.look(now, whole=whole or any(eye.finder.wants_scan for eye in self._eyes))
        crowded = busy.share >= CROWDED_SHARE
        for eye in self._eyes:
            eye.look(self._table, now, crowded=crowded)
        protected = frozenset(pid for eye in self._eyes for pid in eye.usage.pids)
        own = self._own.look(self._table, self._own_pids, count_waiting=False, without=protected)
        ours_s = own.cpu_s + sum(eye.usage.cpu_s for eye in self._eyes)
        self.last = Sample(
            monotonic_s=now,
            elapsed_s=elapsed_s,
            suspended=suspended,
            machine=MachineSample(
                cpu_count=self._cpu.cpu_count,
                busy_share=busy.share,
                foreign_share=busy.foreign_share(ours_s),
                top=self._top(protected | frozenset(own.pids)),
                pressure_share=pressure_share(),
            ),
            processes=tuple(self._process(eye, elapsed_s) for eye in self._eyes),
            source_reachable=source_reachable,
        )
        return self.last

    def _top(self, ours: frozenset[int]) -> tuple[TopProcess, ...]:
        return tuple(
            msgspec.structs.replace(item, foreign=item.pid not in ours) for item in self._table.top
        )

    def _process(self, eye: _Eye, elapsed_s: float) -> ProcessSample:
        name, usage, main = eye.watch.name, eye.usage, eye.found.main
        share = usage.cpu_s / elapsed_s if elapsed_s else 0.0
        return ProcessSample(
            name=name,
            root=main.root if main else None,
            cpu_share=share,
            cpu_demand=share + (usage.waited_s / elapsed_s if elapsed_s else 0.0),
            rss_bytes=usage.rss_bytes,
            threads=usage.threads,
            pids=usage.pids,
            required=eye.watch.required and eye.found.observable,
            probed=self._probes.can_ask(name),
            problem=eye.found.problem or self._probes.problem(name),
            restarts=eye.found.restarts,
        )


def _environment() -> dict[str, str]:
    """What probes and systemctl get of the guardian's environment."""
    kept = ("PATH", "LANG", "TZ", "SYSTEMROOT")
    return {"PATH": os.defpath} | {name: os.environ[name] for name in kept if name in os.environ}
