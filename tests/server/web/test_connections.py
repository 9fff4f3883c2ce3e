"""Connections that dawdle, flood, or never end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from feed.messages import CHECK_IN_PATH
from server.settings import Limits
from server.storage.database import Database
from server.web import connections
from server.web.connections import Wire
from tests.support import webserver
from tests.support.webserver import WAIT_S, WebServer, wait_for

STRICT = Limits(header_s=0.5, body_s=0.5, body_bytes_max=4096, connections_max=16)


@pytest.fixture
def strict(
    lone_database: Database, feed: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[WebServer]:
    monkeypatch.setattr(connections, "BODY_GRACE_S", 0.3)
    with webserver.served(lone_database, feed, limits=STRICT) as server:
        yield server


def connect(server: WebServer, sent: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S)
    client.sendall(sent)
    return client


def up(client: socket.socket) -> bool:
    """Whether /healthz is answered here."""
    client.sendall(b"GET /healthz HTTP/1.1\r\nHost: s\r\n\r\n")
    told = b""
    while b'"up"}' not in told and (piece := client.recv(65536)):
        told += piece
    return told.startswith(b"HTTP/1.1 200") and told.endswith(b'"up"}')


def answer(client: socket.socket) -> bytes:
    """All that comes until the server closes."""
    told = b""
    with client, contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65536):
            told += piece
    return told


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HT", b"GET / HTTP/1.1\r\nHost: s\r\nX: "])
def test_a_head_that_does_not_come_ends_the_connection(strict: WebServer, sent: bytes) -> None:
    began = time.monotonic()
    assert answer(connect(strict, sent)) == b""
    assert time.monotonic() - began < 10
    assert strict.parts.connections.late == 1


def test_a_second_request_has_its_time_too(strict: WebServer) -> None:
    client = connect(strict)
    assert up(client)
    client.sendall(b"GET /heal")
    assert answer(client) == b""


def test_a_head_byte_by_byte_is_not_waited_for(strict: WebServer) -> None:
    client = connect(strict)
    with contextlib.suppress(OSError):
        for letter in b"GET /healthz HTTP/1.1\r\nHost: s\r\nX-Slow: " + b"x" * 1000:
            client.sendall(bytes([letter]))
            time.sleep(0.02)
    assert strict.parts.connections.late == 1
    client.close()


def test_an_endless_head_is_refused(strict: WebServer) -> None:
    client = connect(strict)
    with contextlib.suppress(OSError):
        client.sendall(b"GET / HTTP/1.1\r\nHost: s\r\n" + b"X: " + b"y" * (1 << 20))
    assert answer(client)[:12] in {b"HTTP/1.1 431", b""}
    assert strict.parts.connections.refused == 1


def test_a_body_that_dawdles_is_told_so(strict: WebServer) -> None:
    head = f"POST {CHECK_IN_PATH} HTTP/1.1\r\nHost: s\r\nContent-Length: 100\r\n\r\n"
    told = answer(connect(strict, head.encode() + b"{"))
    assert told.startswith(b"HTTP/1.1 408")
    assert b'"body_too_slow"' in told


def test_a_body_that_nobody_asked_for_does_not_keep_a_connection(strict: WebServer) -> None:
    head = b"GET /feed/metadata/timestamp.json HTTP/1.1\r\nHost: s\r\n"
    told = answer(connect(strict, head + b"Content-Length: 100000\r\n\r\n"))
    assert told.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("length", [b"Content-Length: 999999", b"Transfer-Encoding: chunked"])
def test_a_body_too_large_is_refused(strict: WebServer, length: bytes) -> None:
    client = connect(
        strict, f"POST {CHECK_IN_PATH} HTTP/1.1\r\nHost: s\r\n".encode() + length + b"\r\n\r\n"
    )
    with contextlib.suppress(OSError):
        if b"chunked" in length:
            for _ in range(10):
                client.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
    assert answer(client).startswith(b"HTTP/1.1 413")


def test_connections_past_the_limit_are_told_so_and_the_others_served(strict: WebServer) -> None:
    held = []
    for _ in range(16):
        held.append(connect(strict))
        assert up(held[-1])
    assert answer(connect(strict)).startswith(b"HTTP/1.1 503")
    assert all(map(up, held))
    for client in held:
        client.close()
    wait_for(lambda: strict.parts.connections.open == 0)
    with strict.client() as client:
        assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET  HTTP/1.1\r\nHost: s\r\n\r\n",
        b"GET /a b HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: s\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: s\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: s\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00" * 5000,
    ],
)
def test_what_is_no_request_ends_and_the_server_goes_on(strict: WebServer, sent: bytes) -> None:
    client = connect(strict, sent)
    client.shutdown(socket.SHUT_WR)
    told = answer(client)
    assert not told.startswith(b"HTTP/1.1 5") or told.startswith(b"HTTP/1.1 503")
    with strict.client() as other:
        assert other.get("/healthz").status_code == 200


def test_who_reads_nothing_keeps_nobody_busy() -> None:
    """A full buffer is looked at now and then, not without a pause."""
    looks = 0

    def full() -> int:
        nonlocal looks
        looks += 1
        return 1

    async def story() -> None:
        cycle: Any = SimpleNamespace(disconnected=False)
        transport = SimpleNamespace(get_write_buffer_size=full, abort=lambda: None)
        protocol: Any = SimpleNamespace(transport=transport, scheme="http")
        wire = Wire(protocol, cycle)
        waiting = [
            asyncio.create_task(wire.send_file(0, 0, 1)),
            asyncio.create_task(wire.end()),
        ]
        await asyncio.sleep(10 * connections.LOOK_S)
        cycle.disconnected = True
        await asyncio.gather(*waiting)

    asyncio.run(story())
    assert 1 <= looks <= 20
