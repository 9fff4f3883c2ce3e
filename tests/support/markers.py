"""What the markers `alone` and `system` mean for a run.

A test marked `alone` measures CPU, memory or time, so it waits until no other
worker runs a test, and the others wait for it. `turn` is a readers-writer
lock over the workers of one checkout: everybody passes the door one after
the other, so that a steady stream of ordinary tests can't starve the one
that waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path


def missing(commands: Sequence[str]) -> str:
    """Why a system test can't run here; empty when it can."""
    if os.geteuid() != 0:
        return "needs root"
    absent = [command for command in commands if shutil.which(command) is None]
    return f"needs {', '.join(absent)}" if absent else ""


@contextlib.contextmanager
def turn(room: Path, door: Path, *, alone: bool) -> Iterator[None]:
    """Hold a test's share of `room`: all of it when `alone`.

    Both are files that exist; they are locked, never written.
    """
    with room.open("rb") as inside:
        with door.open("rb") as waiting:
            fcntl.flock(waiting, fcntl.LOCK_EX)
            fcntl.flock(inside, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


class Turns:
    """The turns of one worker: between two tests in a row that are alone nobody has one."""

    def __init__(self, room: Path, door: Path) -> None:
        self._files = room, door
        self._kept: contextlib.ExitStack | None = None

    @contextlib.contextmanager
    def take(self, *, alone: bool, next_alone: bool) -> Iterator[None]:
        """A test's turn; next_alone: the test that this worker runs next is marked so."""
        held, self._kept = self._kept, None
        if held is None:
            held = contextlib.ExitStack()
            held.enter_context(turn(*self._files, alone=alone))
        try:
            yield
        finally:
            if alone and next_alone:
                self._kept = held
            else:
                held.close()
