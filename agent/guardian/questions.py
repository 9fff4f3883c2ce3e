"""One probe under way: a command, a connection, an HTTP request.

Each is polled until it has an answer and goes as far as it can without
waiting. Addresses are numeric or `localhost`: asking DNS could block, and an
engine's health must not hang on it.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import select
import socket
import sys
from typing import Protocol

import msgspec

from agent.guardian.commands import Command, Commands

HEAD_BYTES_MAX = 4096  # of a response; the status line is at its beginning
SAID_CHARS = 200
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s/:@?#\[\]]+)(?P<port>:\d{1,5})?"
    r"(?P<path>/[^\s#?]*)?(?P<query>\?[^\s#]*)?(?:#.*)?",
    re.ASCII,
)
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?!\d)")
_IN_PROGRESS = (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EAGAIN)

Target = tuple[str, int] | str
Address = tuple[int, Target]  # address family, and what connect() takes
Answer = tuple[bool, str]  # yes or no, and the detail


class Question(Protocol):
    """See the module. close() is for every end, with or without an answer."""

    def poll(self) -> Answer | None: ...

    def close(self) -> None: ...


class Url(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP probe's URL, taken apart."""

    host: str  # as the Host header gives it
    path: str
    secure: bool
    addresses: tuple[Address, ...]


def addresses(text: str) -> tuple[Address, ...]:
    """The addresses behind host:port.

    Raises ValueError: not that form, or a name that only DNS could tell.
    """
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r}: expected host:port")
    hosts = ("127.0.0.1", "::1") if host == "localhost" else (host.strip("[]"),)
    return tuple(_address(item, int(port), text) for item in hosts)


def _address(host: str, port: int, text: str) -> Address:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError as error:
        raise ValueError(
            f"{text!r}: expected an address or localhost; a probe doesn't ask DNS"
        ) from error
    return (socket.AF_INET if version == 4 else socket.AF_INET6), (host, port)


def unix_address(path: str) -> Address:
    """The address of a UNIX socket. Raises ValueError: this platform has none."""
    if sys.platform == "win32":
        raise ValueError("UNIX sockets can't be probed on this platform")
    return socket.AF_UNIX, path


def parse_url(text: str) -> Url:
    """Raises ValueError: not a URL that can be probed."""
    match = _URL.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r}: expected http://address:port/path")
    secure = match["scheme"] == "https"
    port = match["port"] or (":443" if secure else ":80")
    return Url(
        host=match["host"] + (match["port"] or ""),
        path=(match["path"] or "/") + (match["query"] or ""),
        secure=secure,
        addresses=addresses(match["host"] + port),
    )


class CommandQuestion:
    """Exit status 0 is yes."""

    def __init__(self, arguments: tuple[str, ...], commands: Commands) -> None:
        self._commands = commands
        self._command: Command | None = commands.start(arguments)

    def poll(self) -> Answer | None:
        """Once it has ended."""
        status = self._command.poll() if self._command else None
        if self._command is None or status is None:
            return None
        said = self._command.output[-SAID_CHARS:]
        self._command = None
        return status == 0, f"status {status}" + (f": {said}" if said and status else "")

    def close(self) -> None:
        """Kill it and all it started, if it still runs."""
        if self._command:
            self._commands.kill(self._command)
            self._command = None


class ConnectQuestion:
    """A connection that is accepted is yes. Tries the addresses one after the other."""

    def __init__(self, candidates: tuple[Address, ...]) -> None:
        self._waiting = list(candidates)
        self._socket: socket.socket | None = None
        self._target: Target = ""
        self._said = 0  # by the last connect()
        self._problem = "no address"

    def poll(self) -> Answer | None:
        """Yes, or no with the last address's refusal."""
        while self._socket or self._next():
            state = self._state()
            if state is None:
                return None
            if state == 0:
                return True, "connected"
            self._problem = os.strerror(state)
            self.close()
        return False, self._problem

    def _next(self) -> bool:
        if not self._waiting:
            return False
        family, self._target = self._waiting.pop(0)
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.settimeout(0)
        self._connect(self._socket)
        return True

    def _connect(self, connection: socket.socket) -> None:
        try:
            self._said = connection.connect_ex(self._target)
        except OSError as error:  # a path too long for a socket address has no number
            self._said = error.errno or errno.ENAMETOOLONG

    def _state(self) -> int | None:
        """None while pending, 0 when connected, else the error."""
        connection = self._socket
        if connection is None or self._said not in _IN_PROGRESS:
            return self._said
        if isinstance(self._target, str):
            self._connect(connection)  # the engine's queue was full: asked again
            return None if self._said in _IN_PROGRESS else self._said
        if not is_writable(connection):
            return None
        return connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def take(self) -> socket.socket | None:
        """The connected socket; the caller closes it."""
        taken, self._socket = self._socket, None
        return taken

    def close(self) -> None:
        """Give the socket back."""
        if self._socket:
            self._socket.close()
            self._socket = None


class DialogueQuestion:
    """A connection that answers is yes: a hung engine's kernel accepts for it, no more.

    `send` goes out once connected. The answer must hold `expect` within its
    first 4 KiB; an empty `expect` takes anything.
    """

    def __init__(self, candidates: tuple[Address, ...], *, send: str, expect: str) -> None:
        self._connecting = ConnectQuestion(candidates)
        self._socket: socket.socket | None = None
        self._request = send.encode()
        self._expect = expect.encode()
        self._heard = b""

    def poll(self) -> Answer | None:
        """Connect, send and listen, as far as that goes at once."""
        try:
            if self._socket is None:
                answer = self._connecting.poll()
                self._socket = self._connecting.take() if answer and answer[0] else None
                if self._socket is None:
                    return answer
            return self._converse(self._socket)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            return False, error.strerror or str(error)

    def _converse(self, connection: socket.socket) -> Answer:
        while self._request:
            self._request = self._request[connection.send(self._request) :]
        while len(self._heard) < HEAD_BYTES_MAX:
            data = connection.recv(HEAD_BYTES_MAX)
            self._heard += data
            if self._heard and self._expect in self._heard:
                return True, "answered as expected"
            if not data:
                break
        said = f"answered {self._heard[:40]!r}" if self._heard else "closed without an answer"
        return False, said

    def close(self) -> None:
        """Give the socket back."""
        self._connecting.close()
        if self._socket:
            self._socket.close()
            self._socket = None


def is_writable(connection: socket.socket) -> bool:
    """Whether a connect has ended, one way or the other."""
    if sys.platform != "win32":
        poller = select.poll()
        poller.register(connection, select.POLLOUT)
        return bool(poller.poll(0))
    _, ready, failed = select.select([], [connection], [connection], 0)
    return bool(ready or failed)


class HttpQuestion:
    """A GET whose status is 200 to 399 is yes. Only the status line is read."""

    def __init__(self, url: Url) -> None:
        self._url = url
        self._connecting = ConnectQuestion(url.addresses)
        self._socket: socket.socket | None = None
        self._wait: tuple[type[OSError], ...] = (BlockingIOError, InterruptedError)
        self._head = b""
        self._request = (
            f"GET {url.path} HTTP/1.1\r\nHost: {url.host}\r\nUser-Agent: holdfast\r\n"
            "Accept: */*\r\nConnection: close\r\n\r\n"
        ).encode("ascii", "replace")

    def poll(self) -> Answer | None:
        """Connect, ask and listen, as far as that goes at once."""
        try:
            if self._socket is None:
                answer = self._connecting.poll()
                connected = self._connecting.take() if answer and answer[0] else None
                if connected is None:
                    return answer
                self._socket = self._encrypted(connected) if self._url.secure else connected
            return self._converse(self._socket)
        except self._wait:
            return None
        except OSError as error:
            return False, error.strerror or str(error)

    def _encrypted(self, plain: socket.socket) -> socket.socket:
        """TLS without checking names: the question is whether it answers, not who it is."""
        import ssl  # noqa: PLC0415 - 3 MB that only an https probe pays

        self._wait = (*self._wait, ssl.SSLWantReadError, ssl.SSLWantWriteError)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context.wrap_socket(plain, do_handshake_on_connect=False)

    def _converse(self, connection: socket.socket) -> Answer | None:
        if hasattr(connection, "do_handshake"):
            connection.do_handshake()  # does nothing once it is done
        while self._request:
            self._request = self._request[connection.send(self._request) :]
        while len(self._head) < HEAD_BYTES_MAX and b"\n" not in self._head:
            data = connection.recv(HEAD_BYTES_MAX)
            if not data:
                break
            self._head += data
        return judge_status(self._head)

    def close(self) -> None:
        """Give the socket back."""
        self._connecting.close()
        if self._socket:
            self._socket.close()
            self._socket = None


def judge_status(head: bytes) -> Answer:
    """Yes or no, from the beginning of a response."""
    match = _STATUS.match(head)
    if not match:
        return False, f"not an HTTP answer: {head[:40]!r}" if head else "closed without an answer"
    status = int(match[1])
    return 200 <= status <= 399, f"HTTP {status}"
