"""What stands in the log of a request, and what never does."""

from __future__ import annotations

import asyncio
import json

import pytest
import structlog
from structlog.testing import capture_logs

from feed.messages import CHECK_IN_PATH
from server import log
from server.web.asgi import Message, Receive, Scope, Send
from server.web.requests import Requests

TOKEN = f"hfadm_{'0' * 32}_{'s' * 43}"


async def answering(scope: Scope, _receive: Receive, send: Send) -> None:
    status = 500 if scope["path"] == "/broken" else 200
    scope["state"]["who"] = "ada"
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"secret body"})


def asked(path: str, *, request_id: str = "r-1") -> tuple[list[Message], list[tuple[str, int]]]:
    sent: list[Message] = []
    seen: list[tuple[str, int]] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": TOKEN.encode(), "more_body": False}

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": TOKEN.encode(),
        "client": ("192.0.2.1", 5),
        "headers": [
            (b"authorization", f"Bearer {TOKEN}".encode()),
            (b"x-request-id", request_id.encode()),
        ],
    }

    def observe(_method: str, route: str, status: int, _seconds: float) -> None:
        seen.append((route, status))

    app = Requests(answering, observe)

    async def call() -> None:
        await app(scope, receive, send)

    asyncio.run(call())
    return sent, seen


def test_a_request_is_one_line_without_token_query_or_body() -> None:
    with capture_logs() as lines:
        asked("/api/v1/notify")
    assert len(lines) == 1
    assert lines[0]["status"] == 200
    assert lines[0]["who"] == "ada"
    assert TOKEN not in json.dumps(lines)
    assert "secret" not in json.dumps(lines)


def test_what_agents_do_all_day_is_logged_at_debug_and_failures_as_errors() -> None:
    with capture_logs() as lines:
        asked(CHECK_IN_PATH)
        asked("/feed/metadata/timestamp.json")
        asked("/broken")
    assert [line["log_level"] for line in lines] == ["debug", "debug", "error"]


def test_routes_that_are_measured_are_few() -> None:
    _, seen = asked("/feed/targets/x")
    assert seen == [("/feed", 200)]
    _, seen = asked("/no/such/path")
    assert seen == [("none", 200)]


@pytest.mark.parametrize("odd", ["", "a b", "x" * 65, "a\nb", "é"])
def test_an_odd_request_id_is_replaced(odd: str) -> None:
    sent, _ = asked("/", request_id=odd)
    told = dict(sent[0]["headers"])[b"x-request-id"].decode()
    assert told != odd
    assert len(told) == 16


def test_a_traceback_in_the_log_shows_no_values(capsys: pytest.CaptureFixture[str]) -> None:
    before = structlog.get_config()
    try:
        log.configure("info", program="test")
        secret = TOKEN
        try:
            raise ValueError(len(secret))
        except ValueError as error:
            structlog.get_logger().error("broke", exc_info=error)
    finally:
        structlog.configure(**before)
        structlog.contextvars.clear_contextvars()
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["program"]) == ("broke", "test")
    assert "ValueError: 82" in line["exception"]
    assert TOKEN not in line["exception"]
