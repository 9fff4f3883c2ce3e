"""Child processes on the loop: lines in, lines out, an end, a time limit.

* A child gets a small environment, no descriptors but its own, its own
  session, so it can be killed with everything it started.
* What it prints, and what it leaves unread, is bounded; a child that floods or hangs is
  killed.
* Its end is its own: a process that it leaves behind and that holds its
  output open neither delays it nor, unless asked for, outlives it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence

from agent import host
from agent.channel import UNREAD_BYTES_MAX, LineBuffer
from agent.errors import ControlError
from agent.host import PASSED_ON, Process, User
from agent.log import get_logger
from agent.loop import Loop, Timer

READ_BYTES = 64 << 10
REAP_AFTER_S = 0.05  # a closed pipe and the child's end are a moment apart
REAP_TRIES = 40  # then the child is alive and mute, and is killed
GIVE_UP_TRIES = 140  # 5 s later it has outlived SIGKILL
READS_AFTER_END = 32  # 2 MiB, more than a pipe holds

KILLED = -9  # by SIGKILL, as the status of a child that no signal reaches

_log = get_logger()

# What children need of the guardian's environment: how to run Python, where
# temporary files go, proxies for the fetcher; nothing else is passed on.
_PASSED_ON = (
    *PASSED_ON,
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "PYTHONPATH",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONNOUSERSITE",
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
    With whole_lines=False on_line gets what is printed as it comes, unbounded.
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
        whole_lines: bool = True,
        leaves_daemons: bool = False,
    ) -> None:
        """Raises OSError: the command can't be started.

        own_session=False leaves the child in its parent's session, to be killed with it.
        leaves_daemons=True spares what the child left running, unless it is killed itself.
        """
        self.name = name
        self.timed_out = False
        self._loop = loop
        self._on_line = on_line
        self._on_end = on_end
        self._split = LineBuffer().feed if whole_lines else _as_it_comes
        self._outbox = bytearray(first_input)
        self._close_input = close_input
        self._ended = False
        self._mute_polls = 0
        self._process = Process(
            command,
            environment=environment,
            user=user,
            own_session=own_session,
            leaves_daemons=leaves_daemons,
            merge_errors=merge_errors,
        )
        host.expendable(self._process.pid)
        self._own_session = own_session
        self._leaves_daemons = leaves_daemons
        self._input = self._process.input
        self._output = self._process.output
        loop.on_readable(self._output, self._read)
        self._end_watch = self._process.ended
        if self._end_watch is not None:
            loop.on_readable(self._end_watch, self._exited)
        self._write()
        self._timer: Timer | None = (
            loop.call_in(timeout_s, self._time_is_up) if timeout_s is not None else None
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, line: bytes) -> None:
        """Queue `line` for the child's standard input; one that never reads it is killed."""
        self._outbox += line
        self._write()
        if len(self._outbox) > UNREAD_BYTES_MAX:
            _log.warning("child_input_refused", child=self.name, bytes=len(self._outbox))
            self._outbox.clear()
            self.kill()

    def kill(self) -> None:
        """End the child and everything in its session, at once. Gone is fine."""
        if self._process.returncode is not None:
            return  # its id may be another process's by now
        if self._own_session:
            self._process.kill_session()
        self._process.kill()

    def terminate(self) -> None:
        """Ask the child to end; it is killed 3 seconds later if it doesn't."""
        self._process.terminate()
        self._loop.call_in(3.0, self.kill)

    def wait(self, seconds: float) -> None:
        """Block until the child has ended, killing it after `seconds`. For shutdown."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        for pipe in (self._input, self._output):
            self._close(pipe)
        self._forget_end()

    def _write(self) -> None:
        if self._input.closed:
            return
        try:
            while self._outbox:
                sent = self._input.write(bytes(self._outbox[:READ_BYTES]))
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

    def _read(self) -> bool:
        """Take what has been printed; False when there was nothing."""
        try:
            data = self._output.read(READ_BYTES)
            lines = self._split(data)
        except BlockingIOError:
            return False
        except (OSError, ControlError) as error:
            _log.warning("child_output_refused", child=self.name, problem=str(error))
            self.kill()
            data, lines = b"", []
        for line in lines:
            self._on_line(line)
        if not data:
            self._close(self._output)
            self._reap()
        return bool(data)

    def _exited(self) -> None:
        """The child has ended; whoever still holds its output open isn't waited for."""
        for _ in range(READS_AFTER_END):
            if self._output.closed or not self._read():
                break
        self._close(self._output)
        self._reap()

    def _reap(self) -> None:
        if self._ended:
            return
        if not self._process.has_exited():
            self._mute_polls += 1
            if self._mute_polls > REAP_TRIES:
                self.kill()
            if self._mute_polls > GIVE_UP_TRIES:
                self._give_up()
            else:
                self._loop.call_in(REAP_AFTER_S, self._reap)
            return
        if self._own_session and not self._leaves_daemons and self._process.returncode is None:
            self._process.kill_session()  # before wait() gives the id back
        self._end(self._process.wait())

    def _give_up(self) -> None:
        """It waits for a device, and no signal reaches it: a revert can't wait as long."""
        _log.error("child_cannot_be_killed", child=self.name, pid=self.pid)
        self._end(KILLED)

    def _end(self, status: int) -> None:
        self._ended = True
        self._forget_end()
        if self._timer:
            self._timer.cancel()
        self._close(self._input)
        self._close(self._output)
        self._on_end(status)

    def _forget_end(self) -> None:
        if self._end_watch is not None:
            self._loop.forget(self._end_watch)
            self._end_watch.close()
            self._end_watch = None

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


def _as_it_comes(data: bytes) -> list[bytes]:
    return [data] if data else []
