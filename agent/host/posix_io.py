"""POSIX: what the loop waits for. Wake-ups, children's pipes, sockets of the local API."""

from __future__ import annotations

import contextlib
import grp
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any, ClassVar

from agent.errors import ConfigError, UnknownNameError
from agent.host.posix import User

if sys.platform == "win32":
    raise ImportError("agent.host.windows_io is Windows' part")

UNIX_PATH_BYTES_MAX = 107  # sun_path less its terminator, unix(7)
PASSED_ON: tuple[str, ...] = ()  # of the environment, what every program here needs besides


class Wake:
    """What a signal wakes the loop with; readable when there is something to take."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._routed: list[int] = []

    def fileno(self) -> int:
        return self._read

    def route(self, number: int) -> None:
        """From now on signal `number` of this process comes here."""
        self._routed.append(number)
        signal.signal(number, _ignore)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def take(self) -> set[int]:
        """The signals that came since the last call."""
        with contextlib.suppress(BlockingIOError):
            return set(os.read(self._read, 4096))
        return set()

    def close(self) -> None:
        """Give signals and descriptors back."""
        if self._routed:
            signal.set_wakeup_fd(-1)
            for number in self._routed:
                signal.signal(number, signal.SIG_DFL)
        os.close(self._read)
        os.close(self._write)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    return  # the wake-up descriptor carries the number


class Pipe:
    """One end of a pipe. BlockingIOError says that there is nothing to do, unless it may block."""

    def __init__(self, file: IO[bytes] | IO[str], *, may_block: bool = False) -> None:
        self._file = file
        if not may_block:
            os.set_blocking(file.fileno(), False)

    def fileno(self) -> int:
        return self._file.fileno()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def read(self, size: int) -> bytes:
        return os.read(self._file.fileno(), size)

    def write(self, data: bytes) -> int:
        return os.write(self._file.fileno(), data)

    def close(self) -> None:
        self._file.close()


class _Descriptor:
    """A descriptor with a lifetime of its own."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number

    def close(self) -> None:
        os.close(self._number)


def own_input(stream: IO[str]) -> Pipe:
    """This process's standard input, read once it is readable.

    Left blocking: it may be the very socket that standard output is.
    """
    return Pipe(stream, may_block=True)


class Session:
    """What a command starts, to be killed as one."""

    options: ClassVar[dict[str, Any]] = {"start_new_session": True, "cwd": "/"}  # for Popen

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._leader = process.pid

    def kill(self) -> None:
        """End everything in it. Raises OSError: it is gone."""
        os.killpg(self._leader, signal.SIGKILL)


class Process:
    """A started child with pipes on its standard input and output.

    ended is readable once it has ended; None: its output's end must do.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        user: User | None,
        own_session: bool,
        leaves_daemons: bool,
        merge_errors: bool,
    ) -> None:
        """Raises OSError: the command can't be started."""
        del leaves_daemons  # a session ends with nobody
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
        self.pid = self._process.pid
        self.input = Pipe(self._process.stdin)
        self.output = Pipe(self._process.stdout)
        self.ended = _watch_end(self.pid)

    @property
    def returncode(self) -> int | None:
        """None until wait() or has_exited() has collected it."""
        return self._process.returncode

    def has_exited(self) -> bool:
        """Whether it has ended; where the OS can say so, without giving its id back."""
        if self._process.returncode is not None or not hasattr(os, "waitid"):
            return self._process.poll() is not None
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, options) is not None

    def wait(self, seconds: float | None = None) -> int:
        """Its exit status. Raises subprocess.TimeoutExpired."""
        return self._process.wait(seconds)

    def kill(self) -> None:
        """End it at once. Gone is fine."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def terminate(self) -> None:
        """Ask it to end. Gone is fine."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def kill_session(self) -> None:
        """End everything in the session it was started in."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def _watch_end(pid: int) -> _Descriptor | None:
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return _Descriptor(os.pidfd_open(pid))
    except OSError:  # kernels before Linux 5.3
        return None


def listen(path: Path, *, mode: int, group: str = "") -> socket.socket:
    """A socket for local clients at `path`: mode and group say whose.

    Raises ConfigError: the path is too long. UnknownNameError: there is no such group.
    OSError: it can't be bound.
    """
    if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
        raise ConfigError(
            f"runtime_dir: {path} is {len(os.fsencode(path))} bytes long; a socket's path may "
            f"have {UNIX_PATH_BYTES_MAX}"
        )
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.settimeout(0)
    before = os.umask(0o777)  # nobody connects before the mode is right
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    path.chmod(mode)
    if group:
        give_to_group(path, group)
    listener.listen(16)
    return listener


def give_to_group(path: Path, name: str) -> None:
    """Let the members of a group use the socket at `path`.

    Raises UnknownNameError: no such group.
    """
    try:
        found = grp.getgrnam(name)
    except KeyError as error:
        raise UnknownNameError(f"admin_group: there is no group {name!r}") from error
    os.chown(path, -1, found.gr_gid)
    path.chmod(0o660)
