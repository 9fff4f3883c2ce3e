"""The local API: one JSON request a line, one JSON answer a line.

Two UNIX sockets carry it. The status socket is everybody's and only reads; the
control socket belongs to the owner (and admin_group) and also acts. A client
that floods, stalls or hangs costs one connection slot for a few seconds, and
never holds up the loop: each turn answers one request of each client.

Request:  {"do": "status"}   {"do": "history", "count": 20}
Answer:   {"ok": true, "result": ...}   {"ok": false, "code": ..., "error": ...}
"""

from __future__ import annotations

import contextlib
import socket
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog

from agent import host
from agent.channel import LineBuffer
from agent.errors import AgentError, ControlError
from agent.loop import Loop, Timer

REQUEST_BYTES_MAX = 64 << 10
ANSWER_BYTES_MAX = 8 << 20
CLIENTS_MAX = 64
ACCEPT_AGAIN_S = 1.0
PATIENCE_S = 10.0  # with a client that doesn't ask, or doesn't read
READ_BYTES = 16 << 10

_log = structlog.get_logger()


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client may ask; `what` names an entry, a slot, a release or an action."""

    do: str
    count: int = 20
    what: str | None = None
    wait: bool = False
    url: str = ""
    token: str = ""

    def __repr__(self) -> str:
        return f"Request(do={self.do!r})"  # the token isn't for logs


Handler = Callable[[Request], Any]


class ControlServer:
    """Serves handlers on one socket."""

    def __init__(
        self,
        loop: Loop,
        path: Path,
        handlers: dict[str, Handler],
        *,
        mode: int,
        group: str = "",
    ) -> None:
        """Raises ConfigError: no socket can be there, or no such group. OSError: not bound."""
        self._loop = loop
        self._path = path
        self._handlers = handlers
        self._clients: set[_Client] = set()
        self._listener = host.listen(path, mode=mode, group=group)
        self._listen()

    def _listen(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.on_readable(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # no descriptor left: asking again at once would spin
            _log.error("client_not_accepted", problem=str(error))
            self._loop.forget(self._listener)
            self._loop.call_in(ACCEPT_AGAIN_S, self._listen)
            return
        if len(self._clients) >= CLIENTS_MAX:
            self._turn_away(connection)
            return
        self._clients.add(_Client(self._loop, connection, self._answer, self._clients.discard))

    @staticmethod
    def _turn_away(connection: socket.socket) -> None:
        text = f"{CLIENTS_MAX} clients are connected already; try again in a few seconds"
        with connection, contextlib.suppress(OSError):
            connection.settimeout(0)
            connection.send(_refusal("busy", text) + b"\n")

    def _answer(self, line: bytes) -> bytes:
        try:
            request = msgspec.json.decode(line, type=Request)
            handler = self._handlers.get(request.do)
            if handler is None:
                known = ", ".join(sorted(self._handlers))
                raise ControlError(f"{request.do!r} isn't served on {self._path.name}; {known} are")
            answer = msgspec.json.encode({"ok": True, "result": handler(request)})
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _refusal("request_malformed", f"not a request: {error}")
        except AgentError as error:
            return _refusal(error.code, str(error))
        except OSError as error:
            _log.error("request_failed", problem=str(error))
            return _refusal("io_error", str(error))
        if len(answer) > ANSWER_BYTES_MAX:
            text = f"the answer has {len(answer):,} bytes, the limit is {ANSWER_BYTES_MAX:,}"
            return _refusal("answer_too_long", text)
        return answer

    def close(self) -> None:
        """Stop serving and take the socket away."""
        for client in list(self._clients):
            client.close()
        self._loop.forget(self._listener)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()


class StatusServer(ControlServer):
    """For handlers that change nothing, and so leave nothing half done when they fail.

    Everybody may ask here: what goes wrong ends the request, never the guardian.
    """

    def _answer(self, line: bytes) -> bytes:
        try:
            return super()._answer(line)
        except Exception:  # noqa: BLE001 - see above
            _log.error("request_fault", traceback=traceback.format_exc())
            return _refusal("internal_error", "the guardian's log says what went wrong")


class _Client:
    """One connection: reads a line, writes an answer, until it closes or idles too long.

    It is read only while nothing waits to be answered or written, so a client
    that asks faster than it listens is held back by its own socket.
    """

    def __init__(
        self,
        loop: Loop,
        connection: socket.socket,
        answer: Callable[[bytes], bytes],
        gone: Callable[[_Client], None],
    ) -> None:
        self._loop = loop
        self._connection = connection
        self._answer = answer
        self._gone = gone
        self._buffer = LineBuffer(REQUEST_BYTES_MAX)
        self._waiting: deque[bytes] = deque()
        self._outbox = b""
        self._closing = False  # once the outbox is empty
        self._closed = False
        self._timer: Timer | None = None
        connection.settimeout(0)
        loop.on_readable(connection, self._read)
        self._be_patient()

    def _be_patient(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_in(PATIENCE_S, self.close)

    def _read(self) -> None:
        try:
            data = self._connection.recv(READ_BYTES)
            lines = self._buffer.feed(data)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        except ControlError:
            text = f"a request of over {REQUEST_BYTES_MAX:,} bytes"
            self._closing = True
            self._outbox = _refusal(ControlError.code, text) + b"\n"
            self._write()
            return
        if not data:
            self.close()
            return
        self._waiting.extend(lines)
        self._serve()

    def _serve(self) -> None:
        """Answer the next request; without one, read on."""
        if self._closed:
            return
        if not self._waiting:
            self._loop.on_readable(self._connection, self._read)
            return
        self._loop.forget(self._connection)
        self._outbox = self._answer(self._waiting.popleft()) + b"\n"
        self._write()

    def _write(self) -> None:
        try:
            while self._outbox:
                sent = self._connection.send(self._outbox)
                self._outbox = self._outbox[sent:]
        except BlockingIOError:
            self._loop.on_writable(self._connection, self._write)
            return
        except OSError:
            self.close()
            return
        if self._closing:
            self.close()
            return
        self._loop.forget(self._connection)
        self._be_patient()
        self._loop.call_in(0, self._serve)

    def close(self) -> None:
        self._closed = True
        if self._timer:
            self._timer.cancel()
        self._loop.forget(self._connection)
        self._connection.close()
        self._gone(self)


def _refusal(code: str, text: str) -> bytes:
    return msgspec.json.encode({"ok": False, "code": code, "error": text})
