"""The server's web application: what is put before what.

    Requests (id, log) → Front ─ /feed/…                → files
                               ─ /api/v1/agent/notifications → hub
                               ─ everything else → Bodies (limits) ─ check-ins
                                                                  ─ Litestar

`build(parts)` makes it. Litestar holds the API and its description; the feed
and the notifications are raw ASGI, where each request counts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

import structlog
from litestar import Litestar, Request, Response
from litestar.config.app import AppConfig
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from feed.messages import API, FEED_PATH, NOTIFICATIONS_PATH
from server import __version__
from server.errors import ServerError
from server.log import get_logger
from server.web import admin, agents, fleet, health, problems, setup_page
from server.web.asgi import App, Receive, Scope, Send
from server.web.checkin import CheckInApp
from server.web.files import FeedFiles
from server.web.limits import Bodies
from server.web.metrics import Metrics
from server.web.parts import Parts
from server.web.problems import Refusal
from server.web.requests import Requests

log = get_logger()

CODES = {
    400: "invalid",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "media_type",
}


def build(parts: Parts) -> App:
    """The whole application. Its lifespan starts and ends the hub."""
    files, metrics = FeedFiles(parts.feed), Metrics(parts)
    api = _litestar(parts, files, metrics)
    asked = Bodies(CheckInApp(parts, _plain(api)), parts.limits)
    front = _Front(feed=files, notifications=parts.hub, api=asked)
    return Requests(front, metrics.observe)


class _Front:
    """Which application a request is for."""

    def __init__(self, *, feed: App, notifications: App, api: App) -> None:
        self._feed = feed
        self._notifications = notifications
        self._api = api

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        path = scope["path"] if scope["type"] == "http" else ""
        if path.startswith(f"{FEED_PATH}/"):
            return self._feed(scope, receive, send)
        if path == NOTIFICATIONS_PATH:
            return self._notifications(scope, receive, send)
        return self._api(scope, receive, send)


def _plain(api: Litestar) -> App:
    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        await api(scope, receive, send)  # type: ignore[arg-type]

    return call


def _litestar(parts: Parts, files: FeedFiles, metrics: Metrics) -> Litestar:
    async def begin() -> None:
        parts.hub.start()

    handlers: Sequence[Any] = (
        *agents.HANDLERS,
        *admin.HANDLERS,
        *fleet.HANDLERS,
        *health.HANDLERS,
        *setup_page.HANDLERS,
    )
    return Litestar(
        handlers,
        state=State({"parts": parts}),
        dependencies={
            "parts": Provide(lambda: parts, sync_to_thread=False, use_cache=True),
            "files": Provide(lambda: files, sync_to_thread=False, use_cache=True),
            "metrics": Provide(lambda: metrics, sync_to_thread=False, use_cache=True),
        },
        exception_handlers={
            ServerError: _refused,
            HTTPException: _http,
            Exception: _unexpected,
        },
        on_startup=[begin],
        on_shutdown=[parts.hub.close],
        openapi_config=OpenAPIConfig(
            title="Holdfast Security Server",
            version=__version__,
            description="docs/api.md says what the paths are for.",
            path=API,
            render_plugins=[JsonRenderPlugin(path="/openapi.json")],
            components=Components(
                security_schemes={
                    name: SecurityScheme(
                        type="http", scheme="bearer", bearer_format=form, description=told
                    )
                    for name, form, told in (
                        ("administrator", "hfadm_…", "an administrator's token"),
                        ("agent", "hfagt_…", "an agent's credential"),
                        ("enrolment", "hfenr_…", "an enrolment token"),
                    )
                }
            ),
        ),
        logging_config=None,
        request_max_body_size=None,  # Bodies has counted
        debug=False,
        on_app_init=[_quiet],
    )


def _quiet(config: AppConfig) -> AppConfig:
    config.debug = False
    return config


def _answered(request: Request[Any, Any, Any], refusal: Refusal) -> Response[bytes]:
    request_id = request.scope["state"].get("request_id", "")
    return Response(
        problems.body(refusal, request_id),
        status_code=refusal.status,
        headers=problems.headers(refusal),
        media_type="application/json",
    )


def _refused(request: Request[Any, Any, Any], error: ServerError) -> Response[bytes]:
    refusal = problems.of(error)
    if refusal.status == 503:
        log.warning("request_failed", code=error.code, reason=str(error))
    return _answered(request, refusal)


def _http(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """What Litestar itself refuses: no such path, a parameter that doesn't fit."""
    status = error.status_code
    if status >= 500:
        return _unexpected(request, error)
    found = error.extra if isinstance(error.extra, list) else []
    told = "; ".join(f"{item.get('key', '')}: {item.get('message', '')}" for item in found)
    refusal = Refusal(
        status=status,
        code=CODES.get(status, "refused"),
        sentence=(told or str(error.detail))[:500],
        headers=tuple((error.headers or {}).items()),
    )
    return _answered(request, refusal)


def _unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    with structlog.contextvars.bound_contextvars(path=request.scope["path"][:200]):
        log.error("request_broke", exc_info=error)
    sentence = "something went wrong here; the server's log has it under this request_id"
    return _answered(request, Refusal(status=500, code="internal", sentence=sentence))
