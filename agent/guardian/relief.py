"""Room for the hooks of a revert, on a machine that has no process left to give.

What fills the process table can't be told to go back: telling takes a process. When
hooks can't be started again and again, the engine that holds most of the machine's
threads is ended, which takes none. Whoever supervises it starts it on the slot that
was gone back to. Threads, since what the kernel's table is full of is these: a process
is its first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import structlog

from agent import host
from agent.guardian.samples import Census, Headcount, Root

TRIES = 15  # of hooks, RETRY_INTERVAL_S of settlement apart
ENDED_AFTER = 3
CROWD_SHARE = 0.5  # of all threads
LOOKS = 20  # until nobody has come anew

_log = structlog.get_logger()


def crowd(seen: Census, *, own: int) -> Headcount | None:
    """The watch that holds most of this machine's threads.

    own: a process that is none of an engine's, whatever the configuration says.
    """
    for watch in seen.watches:
        pids = {life.pid for life in watch.lives}
        if watch.threads > seen.threads * CROWD_SHARE and own not in pids:
            return watch
    return None


def end_crowd(
    look: Callable[[], Census], life_of: Callable[[int], Root | None], *, own: int
) -> int:
    """End the engine that crowds this machine out; how many processes it had, mostly 0.

    Stopped first, so that none of them makes another while they are ended. Whoever
    was stopped is ended, whatever fails meanwhile. life_of says who has a number
    now, None: no telling. Whoever got an engine's number since a look is left alone.
    """
    name = ""
    stopped: list[Root] = []
    try:
        for found, life in _arrivals(look, own=own):
            name = found
            if _act(host.ProcessHandle.stop, life, life_of, expected={life}):
                stopped.append(life)
    except OSError as error:
        _log.warning("engine_not_seen", watch=name, problem=str(error))
    finally:
        for life in stopped:  # who is stopped keeps the number, also where nobody can tell
            _act(host.ProcessHandle.kill, life, life_of, expected={life, None})
    if stopped:
        _log.warning("engine_ended", watch=name, processes=len(stopped))
    return len(stopped)


def _arrivals(look: Callable[[], Census], *, own: int) -> Iterator[tuple[str, Root]]:
    """The processes of a crowd, until a look finds nobody new. Raises OSError, as `look`."""
    met: set[Root] = set()
    for _ in range(LOOKS):
        found = crowd(look(), own=own)
        fresh = [life for life in found.lives if life not in met] if found else []
        if found is None or not fresh:
            return
        met.update(fresh)
        for life in fresh:
            yield found.name, life


def _act(
    act: Callable[[host.ProcessHandle], None],
    life: Root,
    life_of: Callable[[int], Root | None],
    *,
    expected: set[Root | None],
) -> bool:
    """Do it to that very life of a process; False where it has ended, or may not be touched."""
    try:
        with host.ProcessHandle(life.pid) as process:
            if life_of(life.pid) not in expected:
                return False
            act(process)
    except OSError as error:
        _log.info("engine_not_ended", pid=life.pid, problem=str(error))
        return False
    return True
