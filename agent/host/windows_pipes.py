"""Windows: the local API's named pipes, as sockets for the loop, and their clients.

A pipe's rights are those of agent.host.rights.pipe. Only the first server of a
name is let in, and a client asks who owns the pipe before it says anything: a
name that somebody else took first answers for nobody.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

import pywintypes
import win32con
import win32event
import win32file
import win32pipe
import win32security
import winerror

from agent.errors import UnknownNameError
from agent.host import naming, rights
from agent.host.windows_errors import as_os_error
from agent.host.windows_sockets import pair
from agent.host.windows_users import user_sid

if sys.platform != "win32":
    raise ImportError("agent.host.posix_io is the other systems' part")

BUFFER_BYTES = 64 << 10
AGAIN_MS = 1000  # a name that somebody else has is asked for once more
PAUSE_MS = 200  # after an error: the system is short of something
FIRST_INSTANCE = 0x00080000  # FILE_FLAG_FIRST_PIPE_INSTANCE
LOCAL_ONLY = 0x00000008  # PIPE_REJECT_REMOTE_CLIENTS
# The guardian learns who asks, and can't act as them.
IDENTIFY = 0x00110000  # SECURITY_SQOS_PRESENT | SECURITY_IDENTIFICATION
OWNERS = ("S-1-5-18", "S-1-5-32-544")  # SYSTEM, Administrators


def listen(path: Path, *, mode: int, group: str = "") -> Listener:
    """Clients of the pipe that stands for the socket `path`; mode 0o666 is everybody.

    A name that somebody else has is served once it is free. Raises UnknownNameError: no
    such group.
    """
    sid = _group_sid(group) if group else ""
    sddl = rights.pipe(owner=user_sid(), everybody=bool(mode & 0o002), group=sid)
    return Listener(naming.pipe_name(str(path)), sddl)


def _group_sid(name: str) -> str:
    try:
        sid, _, _ = win32security.LookupAccountName(None, name)
    except pywintypes.error as error:
        raise UnknownNameError(f"admin_group: there is no group {name!r}") from error
    return str(win32security.ConvertSidToStringSid(sid))


class Listener:
    """What accept() is called on: readable when a client waits.

    Any user can take a name before the guardian does. It is served once they let
    go: who can't be asked watches all the same.
    """

    def __init__(self, name: str, sddl: str) -> None:
        self._name = name
        self._security = pywintypes.SECURITY_ATTRIBUTES()
        self._security.SECURITY_DESCRIPTOR = (
            win32security.ConvertStringSecurityDescriptorToSecurityDescriptor(sddl, 1)
        )
        self._arrived: deque[socket.socket] = deque()
        self._read, self._write = pair()
        self._read.setblocking(False)
        self._stop = win32event.CreateEvent(None, True, False, None)
        try:
            first = self._instance(FIRST_INSTANCE)
        except OSError as error:
            _log().error("pipe_refused", pipe=name, problem=str(error))
            first = None
        self._thread = threading.Thread(target=self._serve, args=(first,), daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        return self._read.fileno()

    def accept(self) -> tuple[socket.socket, None]:
        """The next client. Raises BlockingIOError: there is none."""
        self._read.recv(1)
        return self._arrived.popleft(), None

    def close(self) -> None:
        """Take the pipe away; clients that were accepted stay."""
        win32event.SetEvent(self._stop)
        self._thread.join(5.0)
        self._read.close()
        self._write.close()

    def _instance(self, more: int = 0) -> Any:
        with as_os_error(self._name):
            return win32pipe.CreateNamedPipe(
                self._name,
                win32pipe.PIPE_ACCESS_DUPLEX | win32file.FILE_FLAG_OVERLAPPED | more,
                win32pipe.PIPE_TYPE_BYTE | win32pipe.PIPE_WAIT | LOCAL_ONLY,
                win32pipe.PIPE_UNLIMITED_INSTANCES,
                BUFFER_BYTES,
                BUFFER_BYTES,
                0,
                self._security,
            )

    def _serve(self, instance: Any) -> None:
        """Until `close`: what goes wrong costs a client, and the next ones a moment."""
        while instance is None:
            if self._is_closing(AGAIN_MS):
                return
            with contextlib.suppress(OSError):
                instance = self._instance(FIRST_INSTANCE)
                _log().info("pipe_served", pipe=self._name)
        while not self._is_closing(0):
            try:
                if self._connected(instance):
                    instance = self._handed_over(instance)
            except (OSError, pywintypes.error) as error:
                with contextlib.suppress(pywintypes.error):
                    win32pipe.DisconnectNamedPipe(instance)
                if error.winerror != winerror.ERROR_NO_DATA:  # a client that came and went
                    self._is_closing(PAUSE_MS)
        instance.Close()

    def _is_closing(self, milliseconds: int) -> bool:
        found = win32event.WaitForSingleObject(self._stop, milliseconds)
        return bool(found == win32event.WAIT_OBJECT_0)

    def _connected(self, instance: Any) -> bool:
        """Wait for a client; False: this listener is being closed. Raises pywintypes.error."""
        waiting = pywintypes.OVERLAPPED()
        waiting.hEvent = win32event.CreateEvent(None, True, False, None)
        if win32pipe.ConnectNamedPipe(instance, waiting) != winerror.ERROR_PIPE_CONNECTED:
            try:
                _finish(instance, waiting, self._stop, win32event.INFINITE)
            except TimeoutError:
                return False
        return True

    def _handed_over(self, instance: Any) -> Any:
        """Give the loop the client of `instance`; returns the instance for the next one.

        That one is made first: while a name has no instance, anybody can take it.
        Raises OSError: the client is still there.
        """
        following = self._instance()
        try:
            ours, theirs = pair()
        except OSError:
            following.Close()
            raise
        Relay(instance, theirs)
        self._arrived.append(ours)
        self._write.send(b"\0")
        return following


def _log() -> Any:
    import structlog  # noqa: PLC0415 - agentctl, which only asks, goes without

    return structlog.get_logger()


class Relay:
    """Moves bytes between a connected pipe and a socket, until either is closed."""

    def __init__(self, pipe: Any, connection: socket.socket) -> None:
        self._pipe = pipe
        self._socket = connection
        self._stop = win32event.CreateEvent(None, True, False, None)
        self._left = 2
        self._lock = threading.Lock()
        for work in (self._from_client, self._to_client):
            try:
                threading.Thread(target=self._run, args=(work,), daemon=True).start()
            except RuntimeError:  # no room for another thread: the client is turned away
                self._end()

    def _run(self, work: Any) -> None:
        with contextlib.suppress(OSError, pywintypes.error):
            work()
        self._end()

    def _end(self) -> None:
        """One of the two is done; the other one ends by that, and the last one closes."""
        win32event.SetEvent(self._stop)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._left -= 1
            if not self._left:
                self._socket.close()
                self._pipe.Close()

    def _from_client(self) -> None:
        while data := read(self._pipe, stop=self._stop):
            self._socket.sendall(data)

    def _to_client(self) -> None:
        while data := self._socket.recv(BUFFER_BYTES):
            write(self._pipe, data, stop=self._stop)


def read(pipe: Any, *, stop: Any = None, milliseconds: int = win32event.INFINITE) -> bytes:
    """What arrives next; b"" at the end. Raises pywintypes.error, TimeoutError."""
    pending = pywintypes.OVERLAPPED()
    pending.hEvent = win32event.CreateEvent(None, True, False, None)
    buffer = win32file.AllocateReadBuffer(BUFFER_BYTES)
    try:
        win32file.ReadFile(pipe, buffer, pending)
        size = _finish(pipe, pending, stop, milliseconds)
    except pywintypes.error as error:
        if error.winerror in {winerror.ERROR_BROKEN_PIPE, winerror.ERROR_PIPE_NOT_CONNECTED}:
            return b""
        raise
    return bytes(buffer[:size])


def write(
    pipe: Any, data: bytes, *, stop: Any = None, milliseconds: int = win32event.INFINITE
) -> None:
    """All of `data`. Raises pywintypes.error, TimeoutError."""
    while data:
        pending = pywintypes.OVERLAPPED()
        pending.hEvent = win32event.CreateEvent(None, True, False, None)
        win32file.WriteFile(pipe, data, pending)
        data = data[_finish(pipe, pending, stop, milliseconds) :]


def _finish(pipe: Any, pending: Any, stop: Any, milliseconds: int) -> int:
    """Wait for what was begun, and give it up at a stop or when the time is over."""
    events = [pending.hEvent] if stop is None else [pending.hEvent, stop]
    found = win32event.WaitForMultipleObjects(events, False, milliseconds)
    if found != win32event.WAIT_OBJECT_0:
        win32file.CancelIo(pipe)
        with contextlib.suppress(pywintypes.error):  # the buffer is the kernel's until then
            win32file.GetOverlappedResult(pipe, pending, True)
        raise TimeoutError("timed out")
    return int(win32file.GetOverlappedResult(pipe, pending, True))


class Connection:
    """A client's end: what agentctl needs of a socket."""

    def __init__(self, pipe: Any, timeout_s: float) -> None:
        self._pipe = pipe
        self._milliseconds = int(timeout_s * 1000)

    def sendall(self, data: bytes) -> None:
        with as_os_error():
            write(self._pipe, data, milliseconds=self._milliseconds)

    def recv(self, size: int) -> bytes:
        del size  # a pipe gives what is there
        with as_os_error():
            return read(self._pipe, milliseconds=self._milliseconds)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.Close()


def connect(path: Path, *, timeout_s: float) -> Connection:
    """A connection to the guardian's pipe that stands for `path`.

    Raises OSError: there is none, it may not be used, or it isn't the guardian's.
    """
    name = naming.pipe_name(str(path))
    with as_os_error(name):
        try:
            pipe = _open(name)
        except pywintypes.error as error:
            if error.winerror != winerror.ERROR_PIPE_BUSY:
                raise
            win32pipe.WaitNamedPipe(name, int(timeout_s * 1000))
            pipe = _open(name)
    _check_owner(pipe, name)
    return Connection(pipe, timeout_s)


def _open(name: str) -> Any:
    flags = win32file.FILE_FLAG_OVERLAPPED | IDENTIFY
    return win32file.CreateFile(
        name, rights.TALK_RIGHTS, 0, None, win32con.OPEN_EXISTING, flags, None
    )


def _check_owner(pipe: Any, name: str) -> None:
    """Whether administration, or this account itself, made the pipe."""
    with as_os_error(name):
        found = win32security.GetSecurityInfo(
            pipe, win32security.SE_KERNEL_OBJECT, win32security.OWNER_SECURITY_INFORMATION
        )
        owner = win32security.ConvertSidToStringSid(found.GetSecurityDescriptorOwner())
    if owner not in {*OWNERS, user_sid()}:
        pipe.Close()
        raise OSError(f"{name} belongs to {owner}, who isn't the guardian")
