"""One line in the log for each request, and an id that the answer carries, too.

The id is the client's X-Request-ID if it is sane, else a new one. What is
logged has neither tokens nor bodies nor query strings. Administrators' requests
and the server's own failures are logged at info and above; what agents do all
day at debug. A token that somebody puts into a path is masked.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Awaitable, Callable

from feed.messages import API, FEED_PATH, NOTIFICATIONS_PATH
from server.accounts import tokens
from server.log import get_logger
from server.log import request_id as log_of
from server.web.asgi import App, Message, Receive, Scope, Send, header, state
from server.web.problems import REQUEST_ID

PATH_CHARS_MAX = 200

_SANE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_OFTEN = (f"{API}/agent/", f"{FEED_PATH}/", "/metrics", "/healthz", "/readyz")

Observe = Callable[[str, str, int, float], None]  # method, route, status, seconds

log = get_logger()


class Requests:
    """The outermost application.

    A call returns what is awaited: a coroutine more would cost every stream its frame.
    """

    def __init__(self, app: App, observe: Observe) -> None:
        self._app = app
        self._observe = observe

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        given = header(scope, b"x-request-id") or ""
        request_id = given if _SANE.fullmatch(given) else secrets.token_hex(8)
        state(scope)["request_id"] = request_id
        if scope["path"] == NOTIFICATIONS_PATH:  # a stream: it has no end to wait for
            return self._app(scope, receive, send)
        return self._followed(scope, receive, send, request_id)

    async def _followed(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        began, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                fields = [field for field in message["headers"] if field[0] != REQUEST_ID]
                message["headers"] = [*fields, (REQUEST_ID, request_id.encode())]
            await send(message)

        held = log_of.set(request_id)
        try:
            await self._app(scope, receive, sending)
        finally:
            seconds = time.perf_counter() - began
            self._observe(scope["method"], _route(scope), status, seconds)
            _say(scope, status, seconds)
            log_of.reset(held)


def _route(scope: Scope) -> str:
    """The pattern of the path, so that there are few of them."""
    if scope["path"].startswith(f"{FEED_PATH}/"):
        return FEED_PATH
    return str(scope.get("path_template") or "none")


def _say(scope: Scope, status: int, seconds: float) -> None:
    path = scope["path"]
    is_dull = status == 429 or path.startswith(_OFTEN)
    say = log.error if status >= 500 and status != 503 else log.debug if is_dull else log.info
    client = scope.get("client")
    say(
        "request",
        method=scope["method"],
        path=tokens.masked(path)[:PATH_CHARS_MAX],
        status=status,
        duration_ms=round(seconds * 1000, 2),
        client=client[0] if client else None,
        who=state(scope).get("who"),
    )
