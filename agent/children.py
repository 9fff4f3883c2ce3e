"""Child processes on the loop: lines in, lines out, an end, a time limit.

* A child gets a small environment, no descriptors but its own, its own
  session, so it can be killed with everything it started.
* What it prints is bounded; a child that floods or hangs is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence

import structlog

from agent.channel import LineBuffer
from agent.errors import ControlError
from agent.host.posix import User
from agent.loop import Loop, Timer

READ_BYTES = 64 << 10
REAP_AFTER_S = 0.05  # a closed pipe and the child's end are a moment apart
REAP_TRIES = 40  # then the child is alive and mute, and is killed

_log = structlog.get_logger()

# What children need of the guardian's environment: how to run Python, where
# temporary files go, proxies for the fetcher; nothing else is passed on.
_PASSED_ON = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "PYTHONPATH",
    "PYTHONDONTWRITEBYTECODE",
    "COVERAGE_PROCESS_START",
    "COVERAGE_PROCESS_CONFIG",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
)


def small_environment(environment: Mapping[str, str], **extra: str) -> dict[str, str]:
    """The part of `environment` that children get, and `extra`."""
    kept = {name: environment[name] for name in _PASSED_ON if name in environment}
    return {"PATH": os.defpath, **kept, **extra}


class Child:
    """A running child. on_line gets each line it prints, on_end its exit status.

    on_end is called exactly once, also after kill() and when the time is up.
    """

    def __init__(
        self,
        loop: Loop,
        command: Sequence[str],
        *,
        name: str,
        on_line: Callable[[bytes], None],
        on_end: Callable[[int], None],
        environment: Mapping[str, str],
        user: User | None = None,
        timeout_s: float | None = None,
        first_input: bytes = b"",
        close_input: bool = False,
        merge_errors: bool = False,
        own_session: bool = True,
    ) -> None:
        """Raises OSError: the command can't be started.

        own_session=False leaves the child in its parent's session, to be killed with it.
        """
        self.name = name
        self.timed_out = False
        self._loop = loop
        self._on_line = on_line
        self._on_end = on_end
        self._buffer = LineBuffer()
        self._outbox = bytearray(first_input)
        self._close_input = close_input
        self._ended = False
        self._mute_polls = 0
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merge_errors else None,
            env=dict(environment),
            start_new_session=own_session,
            cwd="/",
            user=user.uid if user else None,
            group=user.gid if user else None,
            extra_groups=[] if user else None,
        )
        assert self._process.stdin is not None  # noqa: S101 - PIPE was asked for
        assert self._process.stdout is not None  # noqa: S101
        self._own_session = own_session
        self._input = self._process.stdin
        self._output = self._process.stdout
        os.set_blocking(self._input.fileno(), False)
        os.set_blocking(self._output.fileno(), False)
        loop.on_readable(self._output, self._read)
        self._write()
        self._timer: Timer | None = (
            loop.call_in(timeout_s, self._time_is_up) if timeout_s is not None else None
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, line: bytes) -> None:
        """Queue `line` for the child's standard input."""
        self._outbox += line
        self._write()

    def kill(self) -> None:
        """End the child and everything in its session, at once."""
        if self._own_session:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def terminate(self) -> None:
        """Ask the child to end; it is killed 3 seconds later if it doesn't."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        self._loop.call_in(3.0, self.kill)

    def wait(self, seconds: float) -> None:
        """Block until the child has ended, killing it after `seconds`. For shutdown."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()

    def _write(self) -> None:
        if self._input.closed:
            return
        try:
            while self._outbox:
                sent = os.write(self._input.fileno(), bytes(self._outbox[:READ_BYTES]))
                del self._outbox[:sent]
        except BlockingIOError:
            self._loop.on_writable(self._input, self._write)
            return
        except OSError:
            self._outbox.clear()  # the child is ending; its end is reported by _read
            self._close(self._input)
            return
        self._loop.forget(self._input)
        if self._close_input:
            self._close(self._input)

    def _read(self) -> None:
        try:
            data = os.read(self._output.fileno(), READ_BYTES)
            lines = self._buffer.feed(data)
        except BlockingIOError:
            return
        except (OSError, ControlError) as error:
            _log.warning("child_output_refused", child=self.name, problem=str(error))
            self.kill()
            data, lines = b"", []
        for line in lines:
            self._on_line(line)
        if not data:
            self._close(self._output)
            self._reap()

    def _reap(self) -> None:
        status = self._process.poll()
        if status is None:
            self._mute_polls += 1
            if self._mute_polls > REAP_TRIES:
                self.kill()
            self._loop.call_in(REAP_AFTER_S, self._reap)
            return
        if self._ended:
            return
        self._ended = True
        if self._timer:
            self._timer.cancel()
        self._close(self._input)
        self._close(self._output)
        self._on_end(status)

    def _time_is_up(self) -> None:
        self.timed_out = True
        _log.warning("child_timed_out", child=self.name, pid=self.pid)
        self.kill()
        # A grandchild outside the session may hold the pipe open: don't wait for it.
        self._close(self._output)
        self._reap()

    def _close(self, pipe: object) -> None:
        self._loop.forget(pipe)
        with contextlib.suppress(OSError):
            pipe.close()  # type: ignore[attr-defined]
