"""A server's answers: bounded in bytes, time and trust, whatever it sends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from feed import serverclient
from feed.errors import SecurityServerError
from feed.messages import BODY_BYTES_MAX, CHECK_IN_PATH, CheckInReply
from feed.serverclient import ServerClient

Script = Callable[[socket.socket], None]
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


@contextmanager
def served(script: Script) -> Iterator[str]:
    """A server that reads a request and then does as `script` does."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            heard = b""
            while b"\r\n\r\n" not in heard:
                heard += connection.recv(65536)
            requests.append(heard)
            try:
                script(connection)
            except OSError:
                return

    requests: list[bytes] = []
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        thread.join(20)
        listener.close()
        assert b"Bearer secret" in requests[0]


def answer(data: bytes) -> Script:
    return lambda connection: connection.sendall(data)


def check_in(url: str) -> CheckInReply:
    with ServerClient(url) as client:
        return client.ask(CHECK_IN_PATH, None, CheckInReply, bearer="secret")


def rounds(url: str) -> list[int]:
    with (
        ServerClient(url) as client,
        client.notifications(bearer="secret", after=7) as heard,
    ):
        return list(heard)


def http(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def test_an_answer_is_read() -> None:
    body = b'{"round":3,"look":true,"check_in_s":60,"news":"of a newer server"}'
    with served(answer(http("200 OK", body))) as url:
        assert check_in(url) == CheckInReply(round=3, look=True, check_in_s=60.0)


def test_a_refusal_has_the_servers_code_and_pause() -> None:
    body = b'{"code":"too_many","sentence":"slowly","request_id":"1"}'
    refusal = http("429 Too Many Requests", body, "Retry-After: 17")
    with (
        served(answer(refusal)) as url,
        pytest.raises(SecurityServerError, match="slowly") as caught,
    ):
        check_in(url)
    error = caught.value
    assert (error.code, error.status, error.retry_after_s) == ("too_many", 429, 17.0)
    assert not error.is_refusal


@pytest.mark.parametrize(
    "data",
    [
        http("200 OK", b"<html>"),
        http("200 OK", b"[" * 100_000),
        http("200 OK", b"{}"),
        http("302 Found", b"", "Location: http://127.0.0.1:9/elsewhere"),
        http("200 OK", b"", f"X: {'x' * 200_000}"),
        http("500 Oops", b"\xff" * 2_000_000),
        b"garbage\r\n\r\n",
        b"",
    ],
    ids=["html", "deep", "short", "redirect", "headers", "long error", "garbage", "nothing"],
)
def test_what_is_no_answer_is_an_error(data: bytes) -> None:
    with served(answer(data)) as url, pytest.raises(SecurityServerError):
        check_in(url)


def test_an_endless_answer_is_cut() -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(100 * BODY_BYTES_MAX // 65536):
            connection.sendall(b"x" * 65536)

    with served(flood) as url, pytest.raises(SecurityServerError, match="cut"):
        check_in(url)


def test_rounds_are_heard_and_all_else_is_passed_over() -> None:
    events = (
        b":\n\n" * 3
        + b'id: 8\nevent: look\ndata: {"round": 8}\n\n'
        + b'event: run\ndata: {"round": 99}\n\n'
        + b"event: look\ndata: nonsense\n\n"
        + b'event: look\ndata: {"round": -1}\n\n'
        + b'event: look\r\ndata: {"round": 9}\r\n\r\n'
    )
    with served(answer(STREAM + b"\r\n" + events)) as url:
        assert rounds(url) == [8, 9]


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        (b"2500", 2.5),
        (b"0", 0.0),
        (b"-5", 0.0),
        (b"9" * 400, serverclient.RETRY_MAX_S),
        (b"soon", 0.0),
    ],
)
def test_how_long_to_wait_before_asking_again_is_the_servers_within_bounds(
    asked: bytes, seconds: float
) -> None:
    stream = STREAM + b"\r\nretry: " + asked + b'\n\nevent: look\ndata: {"round": 8}\n\n'
    with (
        served(answer(stream)) as url,
        ServerClient(url) as client,
        client.notifications(bearer="secret", after=7) as heard,
    ):
        assert list(heard) == [8]
        assert client.retry_s == seconds


@pytest.mark.parametrize("mark", [b"data: x\n", b"x"])
def test_an_endless_notification_is_cut(mark: bytes) -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(STREAM + b"\r\n")
        for _ in range(10_000):
            connection.sendall(mark * 1000)

    with served(flood) as url, pytest.raises(SecurityServerError, match="cut"):
        rounds(url)


def test_heartbeats_alone_are_never_too_long() -> None:
    count = 2 * serverclient.EVENT_BYTES_MAX
    with served(answer(STREAM + b"\r\n" + b":\n\n" * count)) as url:
        assert rounds(url) == []


@pytest.mark.parametrize(
    "head",
    [STREAM + b"Content-Encoding: gzip\r\n", b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"],
)
def test_what_isnt_a_plain_stream_of_events_is_refused(head: bytes) -> None:
    with served(answer(head + b"\r\n")) as url, pytest.raises(SecurityServerError) as caught:
        rounds(url)
    assert caught.value.code == "server_not_understood"


def test_a_stream_without_heartbeats_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serverclient, "STALL_S", 0.3)
    over = threading.Event()

    def stall(connection: socket.socket) -> None:
        connection.sendall(STREAM + b"\r\n:\n\n")
        over.wait(20)

    with served(stall) as url:
        with pytest.raises(SecurityServerError, match="in time"):
            rounds(url)
        over.set()


def test_an_authority_that_is_none_is_an_error() -> None:
    with pytest.raises(SecurityServerError, match="enrol again"):
        ServerClient("https://127.0.0.1:9", authority="no certificate")
