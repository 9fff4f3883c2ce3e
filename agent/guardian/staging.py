"""The guardian's side of the stager: one job, one process, one result; the next job waits.

A slot is built by the active slot's program, and again by the package's own
where that leaves no result. Both slots are verified by the package's own alone.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

import structlog

from agent import channel
from agent.channel import Job, Result, StageJob
from agent.children import Child
from agent.errors import ControlError
from agent.guardian.programs import OWN, Program
from agent.loop import Loop

TIMEOUT_S = 3600.0  # hours of rebuilding are a fault, not a large component

Done = Callable[[Result | None], None]

_log = structlog.get_logger()


class StagerLink:
    """Runs one stager at a time: two would write over each other."""

    def __init__(
        self,
        loop: Loop,
        config_path: Path,
        *,
        program: Callable[[], Program] = lambda: OWN,
        on_unfit: Callable[[str], None] = lambda _: None,
    ) -> None:
        """on_unfit: a program failed at what the package's own then did."""
        self._loop = loop
        self._config_path = config_path
        self._program = program
        self._on_unfit = on_unfit
        self._command: list[str] | None = None
        self._child: Child | None = None
        self._result: Result | None = None
        self._stopping = False
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
            job, done = self._waiting.popleft()
            self._start(job, done, self._program() if isinstance(job, StageJob) else OWN)

    def _start(self, job: Job, done: Done, program: Program, failure: str = "") -> None:
        self._result = None
        parent = ("--parent", str(os.getpid()))

        def on_end(status: int) -> None:
            self._child = None
            if status:
                _log.error("stager_ended", status=status)
            result = self._result if status == 0 else None
            if result is None and program != OWN and not self._stopping:
                told = f"the stager {program.version} of slot {program.slot} left no result"
                self._start(job, done, OWN, f"{told} (status {status}), the package's own did")
                return
            if result is not None and failure:
                self._on_unfit(failure)
            done(result)
            self._next()

        try:
            self._child = Child(
                self._loop,
                self._command or program.command("agent.stager", self._config_path, *parent),
                name="stager",
                on_line=self._hear,
                on_end=on_end,
                environment=program.environment(os.environ),
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
        self._stopping = True
        self._waiting.clear()
        if self._child:
            self._child.kill()
            self._child.wait(3.0)
