"""Room for the hooks of a revert, on a machine that has no process left to give.

What fills the process table can't be told to go back: telling takes a process. When
hooks can't be started again and again, the engine that holds most of the machine's
threads is ended, which takes none. Whoever supervises it starts it on the slot that
was gone back to. Threads, since what the kernel's table is full of is these: a process
is its first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from agent import host
from agent.guardian.samples import Sample

TRIES = 15  # of a revert's hooks, RETRY_INTERVAL_S of settlement apart
ENDED_AFTER = 3
CROWD_SHARE = 0.5  # of all threads
LOOKS = 20  # until nobody has come anew

_log = structlog.get_logger()


def crowd(sample: Sample, everybody: int, *, own: int) -> tuple[str, frozenset[int]]:
    """The watch that holds most of this machine's threads, and its processes; else neither.

    everybody: how many threads there are. own: a process that is none of an engine's,
    whatever the configuration says.
    """
    for process in sample.processes:
        if process.threads > everybody * CROWD_SHARE and own not in process.pids:
            return process.name, frozenset(process.pids)
    return "", frozenset()


def end_crowd(look: Callable[[], tuple[Sample, int]], *, own: int) -> int:
    """End the engine that crowds this machine out; how many processes it had, mostly 0.

    Stopped first, so that none of them makes another while they are ended.
    """
    stopped: dict[int, None] = {}
    name = ""
    for _ in range(LOOKS):
        found, pids = crowd(*look(), own=own)
        fresh = [pid for pid in pids if pid not in stopped]
        if not fresh:
            break
        name = found
        _each(fresh, host.stop_process)
        stopped.update(dict.fromkeys(fresh))
    _each(list(stopped), host.kill_process)
    if stopped:
        _log.warning("engine_ended", watch=name, processes=len(stopped))
    return len(stopped)


def _each(pids: Sequence[int], act: Callable[[int], None]) -> None:
    for pid in pids:
        try:
            act(pid)
        except OSError as error:
            _log.info("engine_not_ended", pid=pid, problem=str(error))
