"""The feed from a real server: what a socket gets, byte by byte."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import threading
from pathlib import Path

import httpx
import pytest
import trustme

from server.storage.database import Database
from server.web.connections import Wire
from tests.server.web.conftest import BIG, BIG_CONTENT
from tests.support import webserver
from tests.support.webserver import WAIT_S, WebServer


def raw(server: WebServer, request: bytes, *, wait_s: float = WAIT_S) -> bytes:
    """All that comes back on a connection that is closed after this."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait_s) as client:
        client.sendall(request)
        told = b""
        while piece := client.recv(65536):
            told += piece
        return told


@pytest.mark.parametrize("by_kernel", [True, False])
def test_a_large_file_arrives_whole_and_the_connection_goes_on(
    lone_database: Database, feed: Path, monkeypatch: pytest.MonkeyPatch, *, by_kernel: bool
) -> None:
    if not by_kernel:
        monkeypatch.setattr(Wire, "sends_files", False)
    with webserver.served(lone_database, feed) as server, server.client() as client:
        for _ in range(3):
            answer = client.get(f"/feed/{BIG}")
            assert hashlib.sha256(answer.content).digest() == hashlib.sha256(BIG_CONTENT).digest()
        part = client.get(f"/feed/{BIG}", headers={"Range": "bytes=5000001-8000000"})
        assert (part.status_code, part.content) == (206, BIG_CONTENT[5000001:8000001])
        assert client.head(f"/feed/{BIG}").headers["content-length"] == str(len(BIG_CONTENT))
        assert client.get("/healthz").status_code == 200


def test_many_download_at_once_and_get_what_they_asked_for(
    lone_database: Database, feed: Path
) -> None:
    wrong: list[int] = []

    def download(server: WebServer, number: int) -> None:
        with server.client() as client:
            start = number * 1000
            got = client.get(f"/feed/{BIG}", headers={"Range": f"bytes={start}-"}).content
            if got != BIG_CONTENT[start:]:
                wrong.append(number)

    with webserver.served(lone_database, feed) as server:
        threads = [threading.Thread(target=download, args=(server, number)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_downloads_that_nobody_reads_or_that_end_early_hurt_nobody(
    lone_database: Database, feed: Path
) -> None:
    with webserver.served(lone_database, feed) as server:
        ask = f"GET /feed/{BIG} HTTP/1.1\r\nHost: s\r\n\r\n".encode()
        stalled = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
        for client in stalled:
            client.sendall(ask)
        for client in stalled[:10]:
            client.recv(1000)
            client.close()
        with server.client() as client:
            assert client.get(f"/feed/{BIG}").content == BIG_CONTENT
        for left in stalled[10:]:
            left.close()
    assert server.parts.connections.open == 0


def test_requests_in_one_go_are_answered_in_their_order(
    lone_database: Database, feed: Path
) -> None:
    with webserver.served(lone_database, feed) as server:
        ask = f"GET /feed/{BIG} HTTP/1.1\r\nHost: s\r\nRange: bytes=0-2999999\r\n\r\n".encode()
        last = b"GET /healthz HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n"
        told = raw(server, ask + ask + last)
    assert told.count(BIG_CONTENT[:3_000_000]) == 2
    assert told.endswith(b'{"sentence":"up"}')


def test_over_tls_the_same_bytes_arrive(
    lone_database: Database, feed: Path, tmp_path: Path
) -> None:
    authority = trustme.CA()
    made = authority.issue_cert("localhost", "127.0.0.1")
    made.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    parts = webserver.parts(lone_database, feed)
    verify = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    with (
        WebServer(parts, ssl_certfile=tmp_path / "server.pem") as server,
        httpx.Client(base_url=f"https://127.0.0.1:{server.port}", verify=verify) as client,
    ):
        assert client.get(f"/feed/{BIG}").content == BIG_CONTENT
        part = client.get(f"/feed/{BIG}", headers={"Range": "bytes=-1000000"})
        assert part.content == BIG_CONTENT[-1_000_000:]


@pytest.mark.parametrize("by_kernel", [True, False])
def test_a_file_that_is_cut_short_while_it_is_sent_ends_the_connection(
    lone_database: Database, feed: Path, monkeypatch: pytest.MonkeyPatch, *, by_kernel: bool
) -> None:
    if not by_kernel:
        monkeypatch.setattr(Wire, "sends_files", False)
    with (
        webserver.served(lone_database, feed) as server,
        server.client() as client,
        client.stream("GET", f"/feed/{BIG}") as stream,
    ):
        pieces = stream.iter_raw(1000)
        next(pieces)
        os.truncate(feed / BIG, 1000)
        with pytest.raises(httpx.RemoteProtocolError):
            for _ in pieces:
                pass


OUTSIDE = (
    b"/feed/../etc/passwd",
    b"/feed/targets/../../../../etc/passwd",
    b"/feed/targets/%2e%2e/%2e%2e/etc/passwd",
    b"/feed/targets/..%2f..%2fetc/passwd",
    b"/feed/targets/%5c..%5cetc",
    b"/feed/targets/%00",
    b"/feed/metadata/%ff%fe",
    b"/feed//etc/passwd",
    b"/feed/metadata/",
    b"/feed/",
    b"//feed/metadata/timestamp.json",
    b"/feed/metadata/..%c0%af",
)


def test_a_path_out_of_the_feed_is_not_found(lone_database: Database, feed: Path) -> None:
    with webserver.served(lone_database, feed) as server:
        for path in OUTSIDE:
            told = raw(
                server, b"GET " + path + b" HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n"
            )
            assert told.split(b" ", 2)[1] in {b"404", b"400"}, path
