"""feed.transport over real sockets, and respx where the wire isn't the point."""

from __future__ import annotations

import datetime
import email.utils
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx
import trustme
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from feed import patience, proxy, source
from feed.pacing import BURST_S, Bucket, Floor
from feed.source import OversizeError, SourceError
from feed.transport import Transport
from tests.support.feedserver import Fault, FeedServer

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FeedServer]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a").write_bytes(b"0123456789" * 100)
    with FeedServer(folder) as running:
        yield running


@pytest.fixture
def naps() -> list[float]:
    return []


@pytest.fixture
def transport(naps: list[float]) -> Iterator[Transport]:
    with Transport(sleep=naps.append, proxy="", read_timeout_s=5) as running:
        yield running


def test_a_whole_file_comes_with_its_etag(server: FeedServer, transport: Transport) -> None:
    answer = transport.fetch(f"{server.url}a", limit=1000)
    assert answer.body == b"0123456789" * 100
    assert answer.etag
    assert (transport.requests, transport.received_bytes) == (1, 1000)


def test_an_unchanged_file_costs_no_body(server: FeedServer, transport: Transport) -> None:
    first = transport.fetch(f"{server.url}a", limit=1000)
    by_etag = transport.fetch(f"{server.url}a", limit=1000, etag=first.etag)
    by_date = transport.fetch(f"{server.url}a", limit=1000, last_modified=first.last_modified)
    assert by_etag.not_modified
    assert by_date.not_modified
    assert [entry.sent for entry in server.log] == [1000, 0, 0]


def test_compression_on_the_way_is_never_asked_for(
    server: FeedServer, transport: Transport
) -> None:
    transport.fetch(f"{server.url}a", limit=1000)
    assert server.log[0].headers["accept-encoding"] == "identity"
    assert server.log[0].headers["user-agent"] == "holdfast"


@respx.mock
def test_an_answer_compressed_all_the_same_is_refused(transport: Transport) -> None:
    respx.get("http://feed.test/a").respond(200, headers={"Content-Encoding": "br"}, content=b"x")
    with pytest.raises(SourceError, match="compressed"):
        transport.fetch("http://feed.test/a", limit=10)


@respx.mock
def test_not_modified_is_no_answer_to_an_unconditional_request(transport: Transport) -> None:
    respx.get("http://feed.test/a").respond(304)
    with pytest.raises(SourceError, match="304"):
        transport.fetch("http://feed.test/a", limit=10)


def test_a_stream_continues_where_it_is_told(server: FeedServer, transport: Transport) -> None:
    with transport.stream(f"{server.url}a", limit=1000, start=990) as incoming:
        assert (incoming.status, incoming.start, incoming.total) == (206, 990, 1000)
        assert b"".join(incoming.chunks) == b"0123456789"


def test_a_file_that_changed_since_starts_over(server: FeedServer, transport: Transport) -> None:
    with transport.stream(f"{server.url}a", limit=1000, start=990, if_range='"old"') as incoming:
        assert (incoming.status, incoming.start) == (200, 0)


@respx.mock
def test_another_range_than_asked_for_is_refused(transport: Transport) -> None:
    respx.get("http://feed.test/a").respond(
        206, headers={"Content-Range": "bytes 5-9/10"}, content=b"56789"
    )
    with (
        pytest.raises(SourceError, match="another range"),
        transport.stream("http://feed.test/a", limit=10, start=2),
    ):
        pass


def test_an_announced_excess_is_refused_before_a_byte_is_read(
    server: FeedServer, transport: Transport
) -> None:
    with pytest.raises(OversizeError, match=r"announces 1,000 bytes, expected at most 999"):
        transport.fetch(f"{server.url}a", limit=999)
    assert transport.received_bytes == 0


def test_an_endless_answer_is_cut_at_the_limit(server: FeedServer, transport: Transport) -> None:
    server.faults["a"] = Fault(endless=True)
    with pytest.raises(OversizeError, match="more than"):
        transport.fetch(f"{server.url}a", limit=300_000)
    assert transport.received_bytes <= 300_000
    assert transport.requests == 1


def test_a_dripping_answer_is_cut_by_the_floor(server: FeedServer) -> None:
    server.faults["a"] = Fault(drip_s=0.02)
    with Transport(proxy="", read_timeout_s=0.4, slowest_bytes_per_s=5000, attempts=1) as transport:
        began = time.monotonic()
        with pytest.raises(SourceError, match="below 5000 bytes/s"):
            transport.fetch(f"{server.url}a", limit=1000)
        assert time.monotonic() - began < 5


def test_an_answer_that_takes_too_long_in_total_is_given_up(server: FeedServer) -> None:
    server.faults["a"] = Fault(drip_s=0.02)
    with (
        Transport(proxy="", fetch_max_s=0.2, slowest_bytes_per_s=0, attempts=1) as transport,
        pytest.raises(SourceError, match=r"not complete after 0\.2 s"),
    ):
        transport.fetch(f"{server.url}a", limit=1000)


def test_a_server_that_says_nothing_times_out(server: FeedServer) -> None:
    server.faults["a"] = Fault(hang=True)
    with (
        Transport(proxy="", read_timeout_s=0.2, attempts=2, sleep=lambda _s: None) as transport,
        pytest.raises(SourceError, match="nothing came in time; gave up after 2 attempts"),
    ):
        transport.fetch(f"{server.url}a", limit=1000)


def test_headers_that_drip_are_given_up_as_a_whole() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()
        dripper = threading.Thread(target=_drip_headers, args=(listener, stop))
        dripper.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/a"
            with (
                Transport(
                    proxy="", connect_timeout_s=0.1, read_timeout_s=0.3, attempts=1
                ) as transport,
                pytest.raises(SourceError, match=r"no answer within 0\.5 s"),
            ):
                transport.fetch(url, limit=10)
        finally:
            stop.set()
            dripper.join()


def _drip_headers(listener: socket.socket, stop: threading.Event) -> None:
    connection, _ = listener.accept()
    with connection:
        try:
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not stop.wait(0.05):
                connection.sendall(b"x")
        except OSError:
            return


def test_passing_failures_are_repeated_and_then_forgotten(
    server: FeedServer, transport: Transport, naps: list[float]
) -> None:
    server.faults["a"] = Fault(status=503, times=2)
    assert transport.fetch(f"{server.url}a", limit=1000).status == 200
    assert [entry.status for entry in server.log] == [503, 503, 200]
    assert len(naps) == 2
    assert naps[0] < naps[1]


def test_a_cut_connection_is_repeated(server: FeedServer, transport: Transport) -> None:
    server.faults["a"] = Fault(cut_after=10, times=1)
    assert len(transport.fetch(f"{server.url}a", limit=1000).body) == 1000


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 416, 451])
def test_refusals_are_final(server: FeedServer, transport: Transport, status: int) -> None:
    server.faults["a"] = Fault(status=status)
    with pytest.raises(SourceError) as caught:
        transport.fetch(f"{server.url}a", limit=1000)
    assert caught.value.status == status
    assert len(server.log) == 1


def test_retry_after_is_waited_for(
    server: FeedServer, transport: Transport, naps: list[float]
) -> None:
    server.faults["a"] = Fault(status=429, headers={"Retry-After": "17"}, times=1)
    transport.fetch(f"{server.url}a", limit=1000)
    assert naps == [17.0]


def test_retry_after_as_a_date_is_waited_for(
    server: FeedServer, transport: Transport, naps: list[float]
) -> None:
    date = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=40)
    stamp = email.utils.format_datetime(date, usegmt=True)
    server.faults["a"] = Fault(status=503, headers={"Retry-After": stamp}, times=1)
    transport.fetch(f"{server.url}a", limit=1000)
    assert 20 < naps[0] <= 40


def test_a_longer_pause_than_the_cap_is_handed_to_the_caller(
    server: FeedServer, transport: Transport, naps: list[float]
) -> None:
    server.faults["a"] = Fault(status=429, headers={"Retry-After": "3600"})
    with pytest.raises(SourceError, match="pause of 3600 s") as caught:
        transport.fetch(f"{server.url}a", limit=1000)
    assert caught.value.retry_after_s == 3600
    assert (naps, len(server.log)) == ([], 1)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 12 ", 12.0),
        ("Thu, 01 Jan 2026 00:01:00 GMT", 60.0),
        ("Thu, 01 Jan 2026 00:01:00 -0000", 60.0),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        (f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT", None),
        (None, None),
    ],
)
def test_retry_after_has_two_forms(value: str | None, seconds: float | None) -> None:
    assert source.retry_after_s(value, now=NOW) == seconds


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_pauses_grow_up_to_a_cap(attempt: int, chance: float) -> None:
    pause = patience.backoff_s(attempt, chance)
    assert 0 < pause <= patience.BACKOFF_MAX_S
    assert patience.backoff_s(attempt + 1, chance) >= pause


def test_attempts_that_brought_something_dont_count(transport: Transport) -> None:
    reached = [0]
    tried = []

    def attempt() -> None:
        tried.append(1)
        if len(tried) <= 10:
            reached[0] += patience.PROGRESS_BYTES
        raise SourceError("cut", temporary=True)

    with pytest.raises(SourceError, match="gave up after 4 attempts in a row"):
        transport.retry(attempt, progress=lambda: reached[0])
    assert len(tried) == 13


def test_a_dead_first_address_costs_a_moment_not_a_timeout(
    server: FeedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _black_hole() as hole:
        with pytest.raises(TimeoutError):
            socket.create_connection(hole, timeout=0.3)
        real = socket.getaddrinfo

        def two_addresses(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
            if host not in ("twofold.test", b"twofold.test"):
                return real(host, port, *args, **kwargs)
            kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
            return [(*kind, hole), (*kind, ("127.0.0.1", server.port))]

        monkeypatch.setattr(socket, "getaddrinfo", two_addresses)
        with Transport(proxy="", connect_timeout_s=8, attempts=1) as transport:
            began = time.monotonic()
            url = f"http://twofold.test:{server.port}/a"
            assert transport.fetch(url, limit=1000).status == 200
            assert time.monotonic() - began < 4


class _black_hole:  # noqa: N801 - used as a block
    """An address that takes no connection and refuses none: its queue is full."""

    def __enter__(self) -> tuple[str, int]:
        self._sockets = [socket.create_server(("127.0.0.2", 0), backlog=0)]
        address: tuple[str, int] = self._sockets[0].getsockname()
        for _ in range(8):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(address)
            self._sockets.append(filler)
        return address

    def __exit__(self, *_: object) -> None:
        for each in self._sockets:
            each.close()


def test_nobody_listening_is_said_in_the_systems_words(transport: Transport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(SourceError, match="no connection"):
        transport.fetch(f"http://127.0.0.1:{port}/a", limit=1)


def test_redirects_are_followed(server: FeedServer, transport: Transport) -> None:
    server.faults["start"] = Fault(status=302, headers={"Location": "/a"})
    assert transport.fetch(f"{server.url}start", limit=1000).status == 200


def test_a_circle_of_redirects_ends(server: FeedServer, transport: Transport) -> None:
    server.faults["a"] = Fault(status=307, headers={"Location": "a"})
    with pytest.raises(SourceError, match="more than 5 redirects"):
        transport.fetch(f"{server.url}a", limit=1000)
    assert len(server.log) == 6


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://feed.test/a"])
def test_redirects_lead_nowhere_but_http(
    server: FeedServer, transport: Transport, location: str
) -> None:
    server.faults["a"] = Fault(status=302, headers={"Location": location})
    with pytest.raises(SourceError, match="redirects to"):
        transport.fetch(f"{server.url}a", limit=1000)


@respx.mock
def test_redirects_never_leave_https(transport: Transport) -> None:
    respx.get("https://feed.test/a").respond(301, headers={"Location": "http://feed.test/a"})
    with pytest.raises(SourceError, match="from https to http"):
        transport.fetch("https://feed.test/a", limit=10)


@respx.mock
def test_credentials_stay_with_their_host(transport: Transport) -> None:
    first = respx.get("http://feed.test/a").respond(302, headers={"Location": "/b"})
    second = respx.get("http://feed.test/b").respond(
        302, headers={"Location": "http://elsewhere.test/c"}
    )
    third = respx.get("http://elsewhere.test/c").respond(200, content=b"x")
    transport.fetch("http://user:secret@feed.test/a", limit=10)
    sent = [route.calls[0].request.headers.get("authorization") for route in (first, second, third)]
    assert sent[0] == sent[1] == httpx.BasicAuth("user", "secret")._auth_header
    assert sent[2] is None


def test_credentials_and_queries_reach_no_error_and_no_log(
    server: FeedServer, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    host = server.url.removeprefix("http://")
    transport.fetch(f"http://user:secret@{host}a", limit=1000)
    with pytest.raises(SourceError) as caught:
        transport.fetch(f"http://user:secret@{host}missing?token=hidden", limit=1000)
    assert "missing" in str(caught.value)
    told = str(caught.value) + caplog.text
    assert "secret" not in told
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("url", ["gopher://x/a", "nothing", "http://", "http://[::1/a"])
def test_other_urls_are_refused(transport: Transport, url: str) -> None:
    with pytest.raises(SourceError, match=r"expected|not a URL"):
        transport.fetch(url, limit=1)


def test_a_proxy_given_is_used_for_everything(server: FeedServer) -> None:
    server.faults["a"] = Fault(body=b"from the proxy")
    with Transport(proxy=server.url) as transport:
        assert transport.fetch("http://feed.invalid/a", limit=100).body == b"from the proxy"
    assert server.log[0].headers["host"] == "feed.invalid"


def test_the_environments_proxy_is_used_by_default(
    server: FeedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    _clear_proxies(monkeypatch)
    server.faults["a"] = Fault(body=b"from the proxy")
    monkeypatch.setenv("HTTP_PROXY", server.url)
    with Transport() as transport:
        assert transport.fetch("http://feed.invalid/a", limit=100).body == b"from the proxy"


def test_no_proxy_networks_are_reached_directly(
    server: FeedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    _clear_proxies(monkeypatch)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.0/8")
    with Transport(attempts=1) as transport:
        assert transport.fetch(f"{server.url}a", limit=1000).status == 200


def test_an_empty_proxy_ignores_the_environment(
    server: FeedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    _clear_proxies(monkeypatch)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with Transport(proxy="", attempts=1) as transport:
        assert transport.fetch(f"{server.url}a", limit=1000).status == 200


def _clear_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def test_a_proxy_over_tls_is_verified_like_a_source(tls_server: str, authority: trustme.CA) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with Transport(proxy=tls_server, verify=context, attempts=1) as transport:
        assert transport.fetch("http://feed.invalid/a", limit=100).body == b"over TLS"


def test_a_proxy_that_wants_a_password_is_final(server: FeedServer) -> None:
    server.faults["a"] = Fault(status=407)
    with (
        Transport(proxy=server.url) as transport,
        pytest.raises(SourceError, match="407 Proxy Authentication Required"),
    ):
        transport.fetch("http://feed.invalid/a", limit=100)
    assert len(server.log) == 1


@pytest.mark.parametrize(
    "url", ["quic://user:secret@proxy.test", "socks5://user:secret@proxy.test"]
)
def test_a_proxy_of_another_kind_is_named_without_its_password(url: str) -> None:
    with Transport(proxy=url) as transport, pytest.raises(SourceError) as caught:
        transport.fetch("http://feed.test/a", limit=1)
    assert "proxy.test" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "exempt"),
    [
        ("*", "anything", 80, True),
        ("example.com", "example.com", 80, True),
        ("example.com", "www.example.com", 80, True),
        (".example.com", "example.com", 80, True),
        ("*.example.com", "www.example.com", 80, True),
        ("example.com", "badexample.com", 80, False),
        ("Example.COM", "example.com.", 80, True),
        ("example.com:8080", "example.com", 8080, True),
        ("example.com:8080", "example.com", 80, False),
        ("10.0.0.0/8", "10.1.2.3", 80, True),
        ("10.0.0.0/8", "11.1.2.3", 80, False),
        ("10.1.2.3", "10.1.2.3", 80, True),
        ("10.0.0.0/8", "::ffff:10.1.2.3", 80, True),
        ("fd00::/8", "[fd00::1]", 443, True),
        ("::1", "::1", 443, True),
        ("[::1]:443", "::1", 443, True),
        ("[::1]:443", "::1", 80, False),
        ("localhost, 10.0.0.0/8", "10.9.9.9", 80, True),
        ("10.0.0.0/99, ,", "10.9.9.9", 80, False),
        ("", "example.com", 80, False),
    ],
)
def test_no_proxy_is_read_as_curl_reads_it(
    no_proxy: str, host: str, port: int, exempt: bool
) -> None:
    assert proxy.is_exempt(no_proxy, host=host, port=port) is exempt


def test_all_proxy_serves_schemes_without_their_own() -> None:
    settings = {"all": "proxy.test:3128", "https": "http://tls.test"}
    assert proxy.choose(settings, scheme="http", host="a", port=80) == "http://proxy.test:3128"
    assert proxy.choose(settings, scheme="https", host="a", port=443) == "http://tls.test"
    assert proxy.choose({}, scheme="http", host="a", port=80) is None


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=50))
def test_the_bandwidth_holds_on_average(amounts: list[int]) -> None:
    rate, now = 1000.0, 0.0
    bucket = Bucket.full(rate, now_s=now)
    for amount in amounts:
        bucket, wait_s = bucket.take(amount, now_s=now)
        now += wait_s
    assert sum(amounts) <= rate * (now + BURST_S) + 1e-3


def test_a_bandwidth_limit_makes_the_reader_wait(server: FeedServer, naps: list[float]) -> None:
    with Transport(
        proxy="", sleep=naps.append, clock=lambda: 0.0, bandwidth_bytes_per_s=100
    ) as transport:
        transport.fetch(f"{server.url}a", limit=1000)
    assert naps[-1] == pytest.approx(9.5)


def test_our_own_waiting_never_makes_a_source_look_slow() -> None:
    floor = Floor(1000, 10)
    for _ in range(100):
        floor = floor.add(10, waited_s=0.001)
    assert not floor.is_broken


def test_a_good_start_doesnt_pay_for_a_drip_later() -> None:
    floor = Floor(100, 10).add(1 << 30, waited_s=10)
    assert not floor.is_broken
    assert floor.add(1, waited_s=5).add(1, waited_s=5).is_broken


def test_a_file_source_answers_like_a_server(tmp_path: Path, transport: Transport) -> None:
    file = tmp_path / "a b%20"
    file.write_bytes(b"0123456789")
    url = file.as_uri()
    first = transport.fetch(url, limit=10)
    assert first.body == b"0123456789"
    assert transport.fetch(url, limit=10, etag=first.etag).not_modified
    with transport.stream(url, limit=10, start=8) as incoming:
        assert (incoming.status, incoming.total, b"".join(incoming.chunks)) == (206, 10, b"89")
    with pytest.raises(OversizeError, match="10 bytes, expected at most 9"):
        transport.fetch(url, limit=9)
    with pytest.raises(SourceError) as caught, transport.stream(url, limit=10, start=10):
        pass
    assert caught.value.status == 416


def test_a_file_that_isnt_there_is_missing(tmp_path: Path, transport: Transport) -> None:
    with pytest.raises(SourceError, match="no such file") as caught:
        transport.fetch((tmp_path / "nothing").as_uri(), limit=1)
    assert caught.value.status == 404


def test_only_regular_files_are_read(tmp_path: Path, transport: Transport) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(SourceError) as caught:
            transport.fetch(path.as_uri(), limit=1)
        assert caught.value.status == 403


def test_a_file_url_names_no_other_machine(transport: Transport) -> None:
    with pytest.raises(SourceError, match="no host"):
        transport.fetch("file://server/share/a", limit=1)


def test_a_file_that_shrinks_while_read_is_no_answer(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(bytes(1 << 20))
    with Transport() as transport, transport.stream(file.as_uri(), limit=1 << 20) as incoming:
        next(incoming.chunks)
        os.truncate(file, 10)
        with pytest.raises(SourceError, match="shrank"):
            list(incoming.chunks)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_server(server: FeedServer, authority: trustme.CA) -> Iterator[str]:
    """The same files over TLS, with a certificate for localhost."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"over TLS"})

    config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none")
    config.load()
    config.ssl = context
    running = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"https://localhost:{listener.getsockname()[1]}/"
        running.should_exit = True
        thread.join()


def test_tls_is_verified_against_the_given_authority(
    tls_server: str, authority: trustme.CA
) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with Transport(proxy="", verify=context, attempts=1) as transport:
        assert transport.fetch(tls_server, limit=100).body == b"over TLS"


def test_a_strangers_certificate_is_refused_once(tls_server: str) -> None:
    with (
        Transport(proxy="", attempts=4, sleep=lambda _s: None) as transport,
        pytest.raises(SourceError, match="certificate is refused") as caught,
    ):
        transport.fetch(tls_server, limit=100)
    assert "gave up" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "parsed"),
    [
        ("bytes 5-9/10", (5, 10)),
        ("bytes 0-0/*", (0, None)),
        ("bytes */10", None),
        ("items 0-1/2", None),
        (None, None),
    ],
)
def test_content_ranges_are_read_strictly(
    value: str | None, parsed: tuple[int, int | None] | None
) -> None:
    assert source.content_range(value) == parsed
