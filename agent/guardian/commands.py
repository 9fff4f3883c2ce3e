"""A command that runs beside the guardian's loop: polled, never waited for.

It has its own session and is killed with everything in it when its time is up.
Standard output and errors are read so that it can't block on them; only the
first bytes are kept (none on Windows).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence

from agent import host

KEPT_BYTES = 4096
READ_BYTES = 64 << 10
CLOSE_WAIT_S = 1.0
READS_A_POLL = 64  # 4 MiB at once; a flood must not hold up the loop


class Command:
    """A running command. Polled until it gives its exit status."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str]) -> None:
        """Raises OSError: it can't be started."""
        self._kept = bytearray()
        self._pipe: int | None = None
        if not hasattr(os, "set_blocking"):  # Windows: a pipe can't be read without waiting
            self._process, self._session = _start(arguments, environment, subprocess.DEVNULL)
            return
        read, write = os.pipe()
        os.set_blocking(read, False)
        try:
            self._process, self._session = _start(arguments, environment, write)
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        self._pipe = read

    @property
    def pid(self) -> int:
        """Of the command itself."""
        return self._process.pid

    @property
    def output(self) -> str:
        """The first KEPT_BYTES it printed."""
        return self._kept.decode("utf-8", "replace").strip()

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        status = self._process.poll()
        self._drain()
        if status is not None:
            self._close()
        return status

    def kill(self) -> None:
        """End it and everything in its session. Poll on until it is gone."""
        with contextlib.suppress(OSError):
            self._session.kill()
        self._close()

    def wait(self, seconds: float) -> None:
        """Block until it has ended, at most `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            for _ in range(READS_A_POLL if self._pipe is not None else 0):
                data = os.read(self._pipe or 0, READ_BYTES)
                self._kept += data[: max(0, KEPT_BYTES - len(self._kept))]
                if not data:
                    return

    def _close(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None


def _start(
    arguments: Sequence[str], environment: dict[str, str], output: int
) -> tuple[subprocess.Popen[bytes], host.Session]:
    process = subprocess.Popen(
        list(arguments),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=environment,
        **host.Session.options,
    )
    session = host.Session(process)
    host.expendable(process.pid)
    return process, session


class Commands:
    """Starts commands, and remembers killed ones until the OS has let go of them."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._dying: list[Command] = []

    def start(self, arguments: Sequence[str]) -> Command:
        """Raises OSError: it can't be started."""
        return Command(arguments, self._environment)

    def kill(self, command: Command) -> None:
        """End a command without waiting for its end."""
        command.kill()
        self._dying.append(command)
        self.sweep()

    def sweep(self) -> int:
        """Collect those that are gone; returns how many aren't yet."""
        self._dying = [item for item in self._dying if item.poll() is None]
        return len(self._dying)

    def close(self) -> None:
        """Wait, shortly, for those that were killed. For shutdown."""
        for item in self._dying:
            item.wait(CLOSE_WAIT_S)
        self.sweep()
