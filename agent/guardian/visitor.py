"""A fetcher that the service manager runs, and that comes to the guardian's socket.

The guardian listens; who connects must be the fetcher's user, which the kernel
vouches for. It is told what program to become (the guardian alone decides that)
and is a child from then on, but for its parent: lines in, lines out, an end. It
is killed by a handle on the process, never by a number that may be reused.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import structlog

from agent import host
from agent.channel import UNREAD_BYTES_MAX, LineBuffer
from agent.errors import ControlError
from agent.guardian import starter
from agent.loop import Loop

if sys.platform == "win32":
    raise ImportError("on Windows the fetcher is the guardian's child")

READ_BYTES = 64 << 10
ACCEPT_AGAIN_S = 1.0
KILLED = -9
WAITING_MAX = 4

_log = structlog.get_logger()


class Visitor:
    """A process of the fetcher's service: awaited, then here, then gone. Used as a Child is."""

    def __init__(
        self,
        loop: Loop,
        first: bytes,
        *,
        on_line: Callable[[bytes], None],
        on_end: Callable[[int], None],
    ) -> None:
        self.pid: int | None = None
        self.ended = False
        self._loop = loop
        self._peer: host.Peer | None = None
        self._connection: socket.socket | None = None
        self._writing: socket.socket | None = None
        self._on_line = on_line
        self._on_end = on_end
        self._split = LineBuffer().feed
        self._outbox = bytearray(first)
        self._absence = loop.call_in(starter.ABSENCE_MAX_S, lambda: self._end(starter.ABSENT))

    def arrive(self, connection: socket.socket, peer: host.Peer) -> None:
        """It is here: from now on it hears and is heard."""
        self._absence.cancel()
        self.pid, self._peer, self._connection = peer.pid, peer, connection
        connection.settimeout(0)
        self._writing = connection.dup()  # a place of its own in the loop
        self._loop.on_readable(connection, self._read)
        self._write()

    def send(self, line: bytes) -> None:
        """Queue `line` for the fetcher; one that talks and never reads is ended."""
        self._outbox += line
        self._write()
        if len(self._outbox) > UNREAD_BYTES_MAX:
            _log.warning("fetcher_input_refused", bytes=len(self._outbox))
            self._outbox.clear()
            self.kill()

    def kill(self) -> None:
        """End it at once. Gone is fine; what can't be killed isn't listened to any more."""
        if self._peer is None or not self._peer.kill():
            self._loop.call_in(0, lambda: self._end(KILLED))

    def terminate(self) -> None:
        """Hang up: a fetcher whose guardian is gone ends, and its service after it."""
        self._end(0)

    def wait(self, seconds: float) -> None:
        """Nobody's child has to be waited for."""
        del seconds

    def _write(self) -> None:
        if self._writing is None:
            return  # awaited
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
        if self._connection is None or self._peer is None:
            return
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
        if self.ended:
            return
        self.ended = True
        self._absence.cancel()
        for end in (self._connection, self._writing):
            if end:
                self._loop.forget(end)
                end.close()
        self._connection = self._writing = None
        if self._peer:
            self._peer.close()
        self._on_end(status)


class Door:
    """Where processes of the fetcher's service connect; `user` is who may, None: this user.

    One that comes before it is wanted waits. See agent.guardian.starter.Starter.
    """

    def __init__(self, loop: Loop, path: Path, *, user: host.User | None) -> None:
        self._awaited: deque[Visitor] = deque()
        self._waiting: deque[tuple[socket.socket, host.Peer]] = deque()
        self._loop = loop
        self._path = path
        self._user = user
        self._listener: socket.socket | None = None

    def start(
        self,
        command: Sequence[str],
        *,
        name: str,
        variables: Mapping[str, str],
        on_line: Callable[[bytes], None],
        on_end: Callable[[int], None],
    ) -> Visitor:
        """What comes next becomes this program, or what is waiting already."""
        _log.debug("visitor_awaited", name=name)
        self.open()
        first = errand(list(command), dict(variables))
        visitor = Visitor(self._loop, first, on_line=on_line, on_end=on_end)
        self._awaited = deque(item for item in self._awaited if not item.ended)
        self._awaited.append(visitor)
        self._match()
        return visitor

    def open(self) -> None:
        """Begin to listen. Raises OSError, or ConfigError: the path is too long for a socket."""
        if self._listener:
            return
        self._listener = host.listen(self._path, mode=0o600)
        if self._user:
            os.chown(self._path, -1, self._user.gid)
            self._path.chmod(0o660)
        self._loop.on_readable(self._listener, self._accept)

    def close(self) -> None:
        """Listen no more."""
        if self._listener:
            self._loop.forget(self._listener)
            self._listener.close()
            self._listener = None
        while self._waiting:
            self._leave(*self._waiting.popleft())

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
        self._waiting.append((connection, peer))
        self._loop.on_readable(connection, lambda: self._gave_up(connection, peer))
        if len(self._waiting) > WAITING_MAX:
            self._leave(*self._waiting.popleft())
        self._match()

    def _match(self) -> None:
        """Who is awaited and who is waiting."""
        while self._awaited and self._waiting:
            visitor = self._awaited.popleft()
            if visitor.ended:
                continue
            connection, peer = self._waiting.popleft()
            self._loop.forget(connection)
            visitor.arrive(connection, peer)

    def _gave_up(self, connection: socket.socket, peer: host.Peer) -> None:
        """One that waits says nothing: it is gone, or isn't what it should be."""
        self._waiting.remove((connection, peer))
        self._leave(connection, peer)

    def _leave(self, connection: socket.socket, peer: host.Peer) -> None:
        self._loop.forget(connection)
        connection.close()
        peer.close()


def errand(command: list[str], environment: dict[str, str]) -> bytes:
    """The first line that a visitor hears: the program to become.

    environment is what it gets besides its service's own.
    """
    said = {"command": command, "environment": environment}
    return msgspec.json.encode(said) + b"\n"
