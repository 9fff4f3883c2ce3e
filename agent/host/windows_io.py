"""Windows: what the loop waits for. It can wait for sockets alone, so threads feed it.

A thread for each end of a pipe moves bytes between the pipe and one of two
connected sockets; the loop has the other one. The threads decide nothing and
hold nothing but their two ends: what the guardian does, it does on its loop.
"""

from __future__ import annotations

import contextlib
import msvcrt
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import IO, Any, ClassVar

import psutil
import pywintypes
import win32api
import win32con
import win32event
import win32job
import win32pipe
import win32process

from agent.host.windows_errors import as_os_error
from agent.host.windows_pipes import Listener, listen
from agent.host.windows_sockets import pair
from agent.host.windows_users import User

if sys.platform != "win32":
    raise ImportError("agent.host.posix_io is the other systems' part")

__all__ = ["PASSED_ON", "Listener", "Pipe", "Process", "Session", "Wake", "listen", "own_input"]

# Without these no socket is made and no random number drawn.
PASSED_ON = ("SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "TEMP", "TMP", "PATHEXT", "PROGRAMDATA")
READ_BYTES = 64 << 10
KILLED = 1  # the exit code of what is killed; Windows has no signals to tell it by
DETACHED_PROCESS = 0x8  # no console: a service has none, and none flashes up elsewhere

_stop_wakes: set[Wake] = set()


class Wake:
    """What a signal, or the service's stop, wakes the loop with."""

    def __init__(self) -> None:
        self._read, self._write = pair()
        self._write.setblocking(False)
        self._routed: list[int] = []

    def fileno(self) -> int:
        return self._read.fileno()

    def route(self, number: int) -> None:
        """From now on signal `number` comes here; in a service, its stop as SIGTERM."""
        if number == signal.SIGTERM:
            _stop_wakes.add(self)
        if threading.current_thread() is not threading.main_thread():
            return  # a service's thread: Python gives signals to the main one
        self._routed.append(number)
        signal.signal(number, _ignore)
        if number == signal.SIGTERM:  # nobody can send that one; Ctrl+Break is as good
            signal.signal(signal.SIGBREAK, lambda *_: self.send(signal.SIGTERM))
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)

    def send(self, number: int) -> None:
        """As if signal `number` had come. From any thread."""
        with contextlib.suppress(OSError):
            self._write.send(bytes([number]))

    def take(self) -> set[int]:
        """The signals that came since the last call."""
        with contextlib.suppress(BlockingIOError):
            return set(self._read.recv(4096))
        return set()

    def close(self) -> None:
        """Give signals and sockets back."""
        _stop_wakes.discard(self)
        if self._routed:
            signal.set_wakeup_fd(-1)
            for number in self._routed:
                signal.signal(number, signal.SIG_DFL)
        self._read.close()
        self._write.close()


def _ignore(_number: int, _frame: FrameType | None) -> None:
    return  # the wake-up socket carries the number


def stop_service() -> None:
    """Have the loops of this process stop, as SIGTERM does elsewhere. From any thread."""
    for wake in list(_stop_wakes):
        wake.send(signal.SIGTERM)


class Pipe:
    """The loop's end of a pipe: BlockingIOError says that there is nothing to do."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self.closed = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self, size: int) -> bytes:
        return self._socket.recv(size)

    def write(self, data: bytes) -> int:
        return self._socket.send(data)

    def close(self) -> None:
        self.closed = True
        self._socket.close()


def _start(name: str, work: Callable[[], None]) -> None:
    threading.Thread(target=work, name=name, daemon=True).start()


def _pump_out(descriptor: int, into: socket.socket) -> None:
    """What can be read from a pipe, to its end."""
    with contextlib.suppress(OSError):
        while data := os.read(descriptor, READ_BYTES):
            into.sendall(data)
    into.close()
    with contextlib.suppress(OSError):
        os.close(descriptor)


def _pump_in(source: socket.socket, descriptor: int) -> None:
    """What the loop writes, to its end."""
    with contextlib.suppress(OSError):
        while data := source.recv(READ_BYTES):
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
    source.close()
    with contextlib.suppress(OSError):
        os.close(descriptor)


def _reader(descriptor: int) -> Pipe:
    ours, theirs = pair()
    ours.setblocking(False)
    _start("pipe out", lambda: _pump_out(descriptor, theirs))
    return Pipe(ours)


def _writer(descriptor: int) -> Pipe:
    ours, theirs = pair()
    ours.setblocking(False)
    _start("pipe in", lambda: _pump_in(theirs, descriptor))
    return Pipe(ours)


def own_input(stream: IO[str]) -> Pipe:
    """This process's standard input, without waiting."""
    return _reader(os.dup(stream.fileno()))


class Session:
    """What a command starts, to be killed as one: a job.

    Popen starts the command suspended; it is in the job before its first instruction.
    """

    options: ClassVar[dict[str, Any]] = {"creationflags": win32con.CREATE_SUSPENDED}  # for Popen

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Raises OSError: it can't be put into a job; it is ended then."""
        self._job = _job(kill_on_close=False)  # a command may leave a daemon, as elsewhere
        access = win32con.PROCESS_SET_QUOTA | win32con.PROCESS_TERMINATE
        try:
            with as_os_error():
                handle: Any = win32api.OpenProcess(access, False, process.pid)
                win32job.AssignProcessToJobObject(self._job, handle)
                handle.Close()
            psutil.Process(process.pid).resume()
        except (OSError, psutil.Error) as error:
            process.kill()
            raise OSError(f"process {process.pid} can't be put into a job: {error}") from error

    def kill(self) -> None:
        """End everything in it. Raises OSError."""
        with as_os_error():
            win32job.TerminateJobObject(self._job, KILLED)


class Process:
    """A started child with pipes on its standard input and output.

    Its session is a job, which it is put into before its first instruction.
    The job ends with this process, unless daemons are to be left. `ended` is
    readable once the child has ended.
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
        self._job = _job(kill_on_close=not leaves_daemons) if own_session else None
        theirs_in, ours_in = _pipe(child_reads=True)
        ours_out, theirs_out = _pipe(child_reads=False)
        errors = theirs_out if merge_errors else _errors()
        info = win32process.STARTUPINFO()
        info.dwFlags = win32con.STARTF_USESTDHANDLES
        info.hStdInput, info.hStdOutput, info.hStdError = theirs_in, theirs_out, errors
        try:
            with as_os_error(command[0]):
                self._handle, thread, pid, _ = _create(command, environment, user, info)
                if self._job is not None:
                    win32job.AssignProcessToJobObject(self._job, self._handle)
                win32process.ResumeThread(thread)
        except OSError:
            ours_in.Close()
            ours_out.Close()
            raise
        finally:
            for handle in (theirs_in, theirs_out, errors):
                handle.Close()
        self.pid = int(pid)
        self.returncode: int | None = None
        self.ended: Pipe | None = self._watch()
        self.input = _writer(msvcrt.open_osfhandle(ours_in.Detach(), os.O_BINARY))
        self.output = _reader(msvcrt.open_osfhandle(ours_out.Detach(), os.O_RDONLY | os.O_BINARY))

    def _watch(self) -> Pipe:
        ours, theirs = pair()
        handle = self._handle

        def wait() -> None:
            win32event.WaitForSingleObject(handle, win32event.INFINITE)
            theirs.close()

        _start("child's end", wait)
        return Pipe(ours)

    def has_exited(self) -> bool:
        """Whether it has ended."""
        return self._collect(0)

    def _collect(self, milliseconds: int) -> bool:
        if self.returncode is None:
            state = win32event.WaitForSingleObject(self._handle, milliseconds)
            if state == win32event.WAIT_OBJECT_0:
                self.returncode = int(win32process.GetExitCodeProcess(self._handle))
        return self.returncode is not None

    def wait(self, seconds: float | None = None) -> int:
        """Its exit status. Raises subprocess.TimeoutExpired."""
        whole = win32event.INFINITE if seconds is None else int(seconds * 1000)
        if not self._collect(whole) or self.returncode is None:
            raise subprocess.TimeoutExpired("child", seconds or 0.0)
        return self.returncode

    def kill(self) -> None:
        """End it at once. Gone is fine."""
        with contextlib.suppress(pywintypes.error):
            win32process.TerminateProcess(self._handle, KILLED)

    def terminate(self) -> None:
        """Ask it to end, by the end of its input."""
        self.input.close()

    def kill_session(self) -> None:
        """End everything in its job."""
        if self._job is not None:
            with contextlib.suppress(pywintypes.error):
                win32job.TerminateJobObject(self._job, KILLED)


def _create(
    command: Sequence[str], environment: Mapping[str, str], user: User | None, info: Any
) -> Any:
    flags = win32con.CREATE_SUSPENDED | DETACHED_PROCESS
    line, folder = subprocess.list2cmdline(command), os.environ.get("SYSTEMROOT")
    rest: Any = (None, line, None, None, True, flags, dict(environment), folder, info)
    if user is None:
        return win32process.CreateProcess(*rest)
    return win32process.CreateProcessAsUser(user.token, *rest)


def _job(*, kill_on_close: bool) -> Any:
    make: Any = win32job.CreateJobObject
    job = make(None, "")
    if kill_on_close:
        kind = win32job.JobObjectExtendedLimitInformation
        limits = win32job.QueryInformationJobObject(job, kind)
        limits["BasicLimitInformation"]["LimitFlags"] |= win32job.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
        win32job.SetInformationJobObject(job, kind, limits)
    return job


def _pipe(*, child_reads: bool) -> tuple[Any, Any]:
    """A pipe's reading and writing end; the child inherits its own and no other."""
    security = pywintypes.SECURITY_ATTRIBUTES()
    security.bInheritHandle = True
    reading, writing = win32pipe.CreatePipe(security, 0)
    ours = writing if child_reads else reading
    win32api.SetHandleInformation(ours, win32con.HANDLE_FLAG_INHERIT, 0)
    return reading, writing


def _errors() -> Any:
    """Where a child's errors go: this process's, by a thread where that is no file."""
    stream = sys.stderr
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return _inheritable(msvcrt.get_osfhandle(stream.fileno()))
    reading, writing = _pipe(child_reads=False)
    descriptor = msvcrt.open_osfhandle(reading.Detach(), os.O_RDONLY)
    _start("child's errors", lambda: _copy_lines(descriptor, stream))
    return writing


def _copy_lines(descriptor: int, stream: IO[str] | None) -> None:
    with open(descriptor, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if stream is not None:
                stream.write(line)


def _inheritable(handle: int) -> Any:
    own = win32api.GetCurrentProcess()
    same = win32con.DUPLICATE_SAME_ACCESS
    return win32api.DuplicateHandle(own, handle, own, 0, True, same)
