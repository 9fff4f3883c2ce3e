"""The demo's folder and processes, and that nothing of them is left.

* Everything lives in one new folder below the system's temporary folder.
* Processes run in sessions of their own: Ctrl-C reaches the demo alone, which
  ends them in order.
* At the end each process that was started, and each that those started, is
  gone by process id, whatever happened in between.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

CHECKOUT = Path(__file__).resolve().parents[2]
TERM_PATIENCE_S = 8.0  # then a process is killed
KILL_PATIENCE_S = 5.0
POLL_S = 0.1
LOG_LINES_SHOWN = 12
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StepError(Exception):
    """Something that the demo promises didn't happen; the text says what was found."""


class Interrupted(BaseException):
    """A signal asks for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass
class Running:
    """A process in the background, and where it writes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def last_words(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-LOG_LINES_SHOWN:])


class Stage:
    """The folder, the environment for everything that runs, and the processes."""

    def __init__(self, *, keep: bool) -> None:
        self.folder = Path()
        self.running: list[Running] = []
        self._keep = keep
        self._seen: dict[int, psutil.Process] = {}
        self._deferring = 0
        self._asked: int | None = None

    def open(self) -> None:
        """Make the folder; from here on signals raise Interrupted, once."""
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._on_signal)
        with self._undisturbed():
            self.folder = Path(tempfile.mkdtemp(prefix="holdfast-demo-"))

    # Signals.

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._asked is not None:
            return
        self._asked = number
        if not self._deferring:
            raise Interrupted(number)

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """A signal in here is answered afterwards: what is made is also written down."""
        self._deferring += 1
        try:
            yield
        finally:
            self._deferring -= 1
        if self._asked is not None and not self._deferring:
            raise Interrupted(self._asked)

    # Processes.

    def environment(self) -> dict[str, str]:
        """This checkout's programs, and where they find their folder and configuration."""
        paths = filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")])
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "HOLDFAST_PUBLISHER_HOME": str(self.folder / "vendor"),
            "HOLDFAST_CONFIG": str(self.folder / "endpoint" / "config.toml"),
            "HOLDFAST_SERVER_CONFIG": str(self.folder / "server" / "server.toml"),
        }

    def run(self, line: str, *command: str) -> None:
        """Run Python with `command`, shown as `line`, in front of the audience.

        Raises StepError: it ended with a status other than 0.
        """
        self._run(line, command, stdout=None)

    def output(self, line: str, *command: str) -> str:
        """As `run`, aside; what it prints."""
        return self._run(line, command, stdout=subprocess.PIPE)

    def _run(self, line: str, command: Sequence[str], *, stdout: int | None) -> str:
        with self._undisturbed():
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                start_new_session=True,
                text=True,
            )
            self._remember(process.pid)
        said, _ = process.communicate()
        if process.returncode:
            raise StepError(f"`{line}` ended with status {process.returncode}")
        return said or ""

    def start(self, name: str, *command: str, folder: Path) -> Running:
        """Start Python with `command` in the background; it writes to `folder`/<name>.log."""
        log = folder / f"{name}.log"
        with self._undisturbed(), log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            self._remember(process.pid)
            started = Running(name, process, log)
            self.running.append(started)
        return started

    def drop(self, ended: Running) -> None:
        """`ended` isn't missed."""
        self.running.remove(ended)

    def _remember(self, pid: int) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self._seen[pid] = psutil.Process(pid)

    def check_alive(self) -> None:
        """Raises StepError with the last words of a process that ended."""
        for item in self.running:
            status = item.process.poll()
            if status is not None:
                raise StepError(f"{item.name} ended with status {status}:\n{item.last_words()}")

    def wait_until(
        self,
        wanted: Callable[[], bool],
        *,
        what: str,
        seconds: float,
        found: Callable[[], str] = lambda: "nothing is known of it",
    ) -> None:
        """Poll `wanted`; an OSError or ValueError from it means not yet.

        Raises StepError: not so in time, or a process ended meanwhile.
        """
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError, ValueError):
                if wanted():
                    return
            self.check_alive()
            if time.monotonic() > deadline:
                raise StepError(f"not so within {seconds:.0f} s: {what}; {found()}")
            time.sleep(POLL_S)

    # The end.

    def close(self) -> list[str]:
        """End all processes and remove the folder; says what couldn't be.

        Not to be interrupted: it takes seconds at most.
        """
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        left = [f"process {pid} is still running" for pid in self._end_processes()]
        if not self._keep and self.folder.is_absolute():
            shutil.rmtree(self.folder, ignore_errors=True)
            if self.folder.exists():
                left.append(f"{self.folder} couldn't be removed")
        return left

    def _end_processes(self) -> list[int]:
        """Ask the newest first (the agent before its engine and feed), then insist."""
        for process in list(self._seen.values()):
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in process.children(recursive=True):
                    self._seen[child.pid] = child
        for item in reversed(self.running):
            _end(item.process)
        remaining = [process for process in self._seen.values() if _lives(process)]
        for process in remaining:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _, alive = psutil.wait_procs(remaining, timeout=KILL_PATIENCE_S)
        return [process.pid for process in alive if _lives(process)]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(TERM_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _lives(process: psutil.Process) -> bool:
    try:
        ended = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return bool(process.is_running() and process.status() not in ended)
    except psutil.NoSuchProcess:
        return False


def free_port() -> int:
    """A port of the loopback interface that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
