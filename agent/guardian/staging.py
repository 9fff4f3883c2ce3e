"""The guardian's side of the stager: one job, one process, one result; the next job waits."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import structlog

from agent import channel
from agent.channel import Job, Result
from agent.children import Child, small_environment
from agent.errors import ControlError
from agent.loop import Loop

TIMEOUT_S = 3600.0  # hours of rebuilding are a fault, not a large component

Done = Callable[[Result | None], None]

_log = structlog.get_logger()


class StagerLink:
    """Runs one stager at a time: two would write over each other."""

    def __init__(self, loop: Loop, config_path: Path) -> None:
        self._loop = loop
        own_pid = str(os.getpid())
        program = [sys.executable, "-P", "-m", "agent.stager"]
        self._command = [*program, "--config", str(config_path), "--parent", own_pid]
        self._child: Child | None = None
        self._result: Result | None = None
        self._waiting: deque[tuple[Job, Done]] = deque()

    @property
    def busy(self) -> bool:
        """Whether a job is being done."""
        return self._child is not None

    def run(self, job: Job, done: Done) -> None:
        """Do `job` after those before it; `done` gets None when it ended without a result."""
        self._waiting.append((job, done))
        self._next()

    def _next(self) -> None:
        if self._child is None and self._waiting:
            self._start(*self._waiting.popleft())

    def _start(self, job: Job, done: Done) -> None:
        self._result = None

        def on_end(status: int) -> None:
            self._child = None
            if status:
                _log.error("stager_ended", status=status)
            done(self._result if status == 0 else None)
            self._next()

        try:
            self._child = Child(
                self._loop,
                self._command,
                name="stager",
                on_line=self._hear,
                on_end=on_end,
                environment=small_environment(os.environ),
                timeout_s=TIMEOUT_S,
                first_input=channel.encode(job),
                close_input=True,
            )
        except OSError as error:
            _log.error("stager_not_started", problem=str(error))
            self._loop.call_in(0, lambda: on_end(0))

    def _hear(self, line: bytes) -> None:
        try:
            self._result = channel.decode(line, Result)
        except ControlError as error:
            _log.error("stager_not_understood", problem=str(error))

    def stop(self) -> None:
        """End the stager and wait for it: its slot stays unsealed."""
        self._waiting.clear()
        if self._child:
            self._child.kill()
            self._child.wait(3.0)
