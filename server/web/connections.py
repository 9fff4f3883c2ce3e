"""What a connection may do before and beside its requests, as a protocol for uvicorn.

uvicorn gives every connection all the time and room it likes. `protocol` makes
a class of its httptools protocol that doesn't:

 * a new connection, and a request that has begun, has `header_s` for its head,
   of at most HEAD_BYTES_MAX, and then little longer than `body_s` for the body;
 * past `connections_max` a connection is told so (503) and closed;
 * what isn't acknowledged for UNACKNOWLEDGED_S ends the connection, so nobody
   holds it by not reading or by being gone.

A request finds its connection in scope["state"]["wire"]: files are sent by the
kernel through it, and a stream that isn't read is ended through it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.settings import Limits

HEAD_BYTES_MAX = 32 << 10
BODY_GRACE_S = 5.0  # the application has said 408 before
UNACKNOWLEDGED_S = 60
SENDFILE_BYTES = 1 << 20  # at once, before others of the process have their turn
AHEAD_BYTES = 4 << 20  # the disk is asked to have it ready
LOOK_S = 0.01  # between two looks whether a full buffer has room, or a connection has ended
SHUTDOWN_S = 5  # for requests under way when the server is told to stop

Phase = Literal["head", "body", "idle"]

_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n"
    b"retry-after: 30\r\nconnection: close\r\n\r\n"
)
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\n"
    b"connection: close\r\n\r\n"
)


@dataclass
class Connections:
    """How many there are, and how many were turned away."""

    open: int = 0
    refused: int = 0
    late: int = 0


class Wire:
    """The connection under one request."""

    __slots__ = ("_cycle", "_protocol")

    def __init__(self, protocol: HttpToolsProtocol, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle

    @property
    def sends_files(self) -> bool:
        """Whether the kernel can send them: plain TCP, and a system that has the call."""
        return self._protocol.scheme == "http" and hasattr(os, "sendfile")

    @property
    def is_gone(self) -> bool:
        """Whether the other end has left."""
        return self._cycle.disconnected

    def abort(self) -> None:
        """End it at once; what wasn't sent is lost."""
        if self._protocol.transport is not None:
            self._protocol.transport.abort()

    async def end(self) -> None:
        """Abort, and wait until the connection has noticed."""
        self.abort()
        while not self.is_gone:
            await asyncio.sleep(LOOK_S)

    async def send_file(self, descriptor: int, start: int, length: int) -> None:
        """Send a part of a file as (a part of) the body whose head was sent.

        The application finishes the body itself, with an empty message. What
        can't be sent whole ends the connection.
        """
        transport = self._protocol.transport
        while transport.get_write_buffer_size() and not self.is_gone:
            await asyncio.sleep(LOOK_S)
        if self.is_gone:
            return
        # A copy of the descriptor: the transport's own may be closed, and its
        # number be another client's, while this one waits.
        out = os.dup(transport.get_extra_info("socket").fileno())
        try:
            sent = await self._pump(out, descriptor, start, length)
        except OSError:
            sent = 0
        finally:
            os.close(out)
        if sent == length:
            self._cycle.expected_content_length -= sent
        else:
            await self.end()

    async def _pump(self, out: int, descriptor: int, start: int, length: int) -> int:
        at, end, ready = start, start + length, start
        while at < end and not self.is_gone:
            if at >= ready:
                ready = at + AHEAD_BYTES
                _prepare(descriptor, ready - AHEAD_BYTES // 2)
            try:
                sent = os.sendfile(out, descriptor, at, min(SENDFILE_BYTES, end - at))
            except BlockingIOError:
                await _writable(out)
                continue
            if not sent:
                break  # cut short on the disk
            at += sent
            await asyncio.sleep(0)
        return at - start


def _prepare(descriptor: int, at: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, at, AHEAD_BYTES, os.POSIX_FADV_WILLNEED)


async def _writable(descriptor: int) -> None:
    """Until there is room again. Raises OSError (TimeoutError) where nobody reads for long."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_writer(descriptor, _done, ready)
    try:
        async with asyncio.timeout(UNACKNOWLEDGED_S):
            await ready
    finally:
        loop.remove_writer(descriptor)


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Guarded(HttpToolsProtocol):
    """uvicorn's protocol with limits; `protocol` sets them."""

    # Beside the base's attributes, whose dictionary would grow past what instances share.
    __slots__ = ("_armed", "_deadline", "_head_bytes", "_phase", "_requests")

    limits: Limits
    counted: Connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._phase: Phase = "head"
        self._armed: tuple[int, Phase] | None = None
        self._requests = 0
        self._head_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None
        self.counted.open += 1
        _end_when_unacknowledged(transport)
        if self.counted.open > self.limits.connections_max:
            self.counted.refused += 1
            transport.write(_BUSY)
            transport.close()
        else:
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self.counted.open -= 1
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._phase == "head":
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self._end_with(_TOO_LARGE)
                return
        if self._armed != (self._requests, self._phase):
            self._arm()

    def on_message_begin(self) -> None:
        self._phase, self._head_bytes = "head", 0
        self._requests += 1
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._phase = "body"
        super().on_headers_complete()
        if self.cycle is not None:
            self.cycle.scope["state"]["wire"] = Wire(self, self.cycle)

    def on_message_complete(self) -> None:
        self._phase = "idle"
        super().on_message_complete()

    def _arm(self) -> None:
        self._disarm()
        self._armed = (self._requests, self._phase)
        if self._phase == "idle":
            return
        head = self._phase == "head"
        seconds = self.limits.header_s if head else self.limits.body_s + BODY_GRACE_S
        self._deadline = self.loop.call_later(seconds, self._late)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self.counted.late += 1
        self.transport.abort()

    def _end_with(self, answer: bytes) -> None:
        self.counted.refused += 1
        self._disarm()
        self.transport.write(answer)
        self.transport.close()


def protocol(limits: Limits, counted: Connections) -> type[Guarded]:
    """The class to give to uvicorn as `http`."""
    return type(
        "LimitedProtocol", (Guarded,), {"__slots__": (), "limits": limits, "counted": counted}
    )


def _end_when_unacknowledged(transport: asyncio.Transport) -> None:
    sock = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is None or sock is None or sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    sock.setsockopt(socket.IPPROTO_TCP, option, UNACKNOWLEDGED_S * 1000)


class Server(uvicorn.Server):
    """Runs `closing` first when it is told to stop: streams would hold it up for ever."""

    def __init__(self, config: uvicorn.Config, closing: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._closing = closing

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._closing()
        await super().shutdown(sockets)


def uvicorn_config(app: Any, limits: Limits, counted: Connections, **more: Any) -> uvicorn.Config:
    """uvicorn as this server runs it. more: ssl_*, and host and port or sockets at serve()."""
    settings: dict[str, Any] = {
        "http": protocol(limits, counted),
        "loop": "auto",
        "interface": "asgi3",
        "ws": "none",
        "lifespan": "on",
        "access_log": False,
        "log_config": None,
        "server_header": False,
        "proxy_headers": False,
        "timeout_keep_alive": 30,
        "timeout_graceful_shutdown": SHUTDOWN_S,
        "backlog": 4096,
    }
    return uvicorn.Config(app, **(settings | more))
