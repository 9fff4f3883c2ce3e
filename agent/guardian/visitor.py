"""A fetcher that the service manager runs, and that comes to the guardian's socket.

The guardian listens; who connects must be the fetcher's user, which the kernel
vouches for. It is told what program to become (the guardian alone decides that)
and is a child from then on, but for its parent: lines in, lines out, an end. It
is killed by a handle on the process, never by a number that may be reused.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from agent import host
from agent.channel import LineBuffer
from agent.errors import ConfigError, ControlError
from agent.loop import Loop

READ_BYTES = 64 << 10
ACCEPT_AGAIN_S = 1.0
UNIX_PATH_BYTES_MAX = 107  # sun_path less its terminator, unix(7)
KILLED = -9

_log = structlog.get_logger()


class Visitor:
    """A connected fetcher. on_line gets each line it says, on_end that it is gone."""

    def __init__(
        self,
        loop: Loop,
        connection: socket.socket,
        peer: host.Peer,
        *,
        on_line: Callable[[bytes], None],
        on_end: Callable[[int], None],
    ) -> None:
        self.pid = peer.pid
        self._peer = peer
        self._loop = loop
        self._connection = connection
        self._on_line = on_line
        self._on_end = on_end
        self._split = LineBuffer().feed
        self._outbox = bytearray()
        connection.settimeout(0)
        self._writing = connection.dup()  # a place of its own in the loop
        loop.on_readable(connection, self._read)

    def send(self, line: bytes) -> None:
        """Queue `line` for the fetcher."""
        self._outbox += line
        self._write()

    def kill(self) -> None:
        """End it at once. Gone is fine; what can't be killed isn't listened to any more."""
        if not self._peer.kill():
            self._end(KILLED)

    def terminate(self) -> None:
        """Hang up: a fetcher whose guardian is gone ends, and its service after it."""
        self._end(0)

    def wait(self, seconds: float) -> None:
        """Nobody's child has to be waited for."""
        del seconds

    def _write(self) -> None:
        try:
            while self._outbox:
                sent = self._writing.send(self._outbox[:READ_BYTES])
                del self._outbox[:sent]
        except BlockingIOError:
            self._loop.on_writable(self._writing, self._write)
            return
        except OSError:
            self._outbox.clear()  # it is ending; its end is reported by _read
        self._loop.forget(self._writing)

    def _read(self) -> None:
        try:
            data = self._connection.recv(READ_BYTES)
            lines = self._split(data)
        except BlockingIOError:
            return
        except (OSError, ControlError) as error:
            _log.warning("fetcher_output_refused", problem=str(error))
            self._peer.kill()
            data, lines = b"", []
        for line in lines:
            self._on_line(line)
        if not data:
            self._end(0)

    def _end(self, status: int) -> None:
        if self._connection.fileno() < 0:
            return
        for end in (self._connection, self._writing):
            self._loop.forget(end)
            end.close()
        self._peer.close()
        self._on_end(status)


class Door:
    """Where the fetcher connects; `on_visit` gets it. `user` is who may, None: this user."""

    def __init__(self, loop: Loop, path: Path, *, user: host.User | None) -> None:
        """Raises ConfigError: the path is too long for a socket."""
        if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
            raise ConfigError(f"runtime_dir: {path} is too long for a socket")
        self.on_visit: Callable[[socket.socket, host.Peer], None] = _turned_away
        self._loop = loop
        self._path = path
        self._user = user
        self._listener: socket.socket | None = None

    def open(self) -> None:
        """Begin to listen. Raises OSError."""
        if self._listener:
            return
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o777)  # nobody connects before owner and mode are right
        try:
            listener.bind(str(self._path))
            if self._user:
                os.chown(self._path, -1, self._user.gid)
            self._path.chmod(0o660)
            listener.listen(4)
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(before)
        listener.settimeout(0)
        self._listener = listener
        self._loop.on_readable(listener, self._accept)

    def close(self) -> None:
        """Listen no more."""
        if self._listener:
            self._loop.forget(self._listener)
            self._listener.close()
            self._listener = None

    def _listen_again(self) -> None:
        if self._listener:
            self._loop.on_readable(self._listener, self._accept)

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # no descriptor left: asking again at once would spin
            _log.error("fetcher_not_accepted", problem=str(error))
            self._loop.forget(self._listener)
            self._loop.call_in(ACCEPT_AGAIN_S, self._listen_again)
            return
        try:
            peer = host.peer_of(connection)
        except OSError as error:
            _log.error("fetcher_not_accepted", problem=str(error))
            connection.close()
            return
        if peer.uid != (self._user.uid if self._user else os.geteuid()):
            _log.error("stranger_turned_away", pid=peer.pid, uid=peer.uid)
            peer.close()
            connection.close()
            return
        self.on_visit(connection, peer)


def _turned_away(connection: socket.socket, peer: host.Peer) -> None:
    peer.close()
    connection.close()


def errand(command: list[str], environment: dict[str, str]) -> bytes:
    """The first line that a visitor hears: the program to become.

    environment is what it gets besides its service's own.
    """
    said = {"command": command, "environment": environment}
    return msgspec.json.encode(said) + b"\n"
