"""How a route is declared: its security, the errors it may answer with, its dependencies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from litestar import Request, delete, get, patch, post, put
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.params import SkipValidation

from server.accounts.credentials import AgentIdentity
from server.web.asgi import Scope
from server.web.door import Door
from server.web.parts import Parts
from server.web.problems import Problem

AnyRequest = Request[Any, Any, State]
PartsGiven = NamedDependency[SkipValidation[Parts]]
Administrator = NamedDependency[SkipValidation[str]]  # who it is
Speaker = NamedDependency[SkipValidation[AgentIdentity]]  # whose credential it is
Connection = ASGIConnection[Any, Any, Any, State]


def _problems(*statuses: int) -> dict[int, ResponseSpec]:
    told = {
        400: "The request doesn't parse, or a value is out of its range.",
        401: "No token, or not a good one.",
        403: "A token of the wrong kind.",
        404: "There is no such thing.",
        409: "Not as things stand.",
        413: "The body is too large.",
        408: "The body came too slowly.",
        429: "Too much at once; Retry-After says when again.",
        503: "Not now; Retry-After says when again.",
    }
    return {
        status: ResponseSpec(Problem, generate_examples=False, description=told[status])
        for status in statuses
    }


OPEN = _problems(400, 404, 408, 413, 429, 503)
CLOSED = _problems(400, 401, 403, 404, 408, 409, 413, 429, 503)


async def _is_agent(connection: Connection, _handler: BaseRouteHandler) -> None:
    _scope(connection)["state"]["identity"] = await _door(connection).agent(_scope(connection))


async def _is_server(connection: Connection, _handler: BaseRouteHandler) -> None:
    _scope(connection)["state"]["identity"] = await _door(connection).server(_scope(connection))


async def _is_administrator(connection: Connection, _handler: BaseRouteHandler) -> None:
    found = await _door(connection).administrator(_scope(connection))
    _scope(connection)["state"]["identity"] = found


def _door(connection: Connection) -> Door:
    parts: Parts = connection.app.state.parts
    return parts.door


def _scope(connection: Connection) -> Scope:
    found: Any = connection.scope
    scope: Scope = found
    return scope


def _identity(request: AnyRequest) -> Any:
    """What a guard has found: guards run before anything of the request is read."""
    return _scope(request)["state"]["identity"]


AGENT: dict[str, Any] = {
    "security": [{"agent": []}],
    "responses": CLOSED,
    "tags": ["agents"],
    "guards": [_is_agent],
    "dependencies": {"agent": Provide(_identity, sync_to_thread=False)},
}
SERVER = AGENT | {"guards": [_is_server]}
ADMINISTRATOR: dict[str, Any] = {
    "security": [{"administrator": []}],
    "responses": CLOSED,
    "tags": ["administrators"],
    "guards": [_is_administrator],
    "dependencies": {"who": Provide(_identity, sync_to_thread=False)},
}

Declared = Callable[[Callable[..., Any]], HTTPRouteHandler]


def _of(method: Callable[..., Any], common: dict[str, Any]) -> Callable[..., Declared]:
    """Litestar's decorator of this method with what such routes have in common."""

    def declare(path: str, **more: Any) -> Declared:
        declared: Declared = method(path, **(common | more))
        return declared

    return declare


agent_post = _of(post, AGENT)
server_post = _of(post, SERVER)
admin_get = _of(get, ADMINISTRATOR)
admin_post = _of(post, ADMINISTRATOR)
admin_put = _of(put, ADMINISTRATOR)
admin_patch = _of(patch, ADMINISTRATOR)
admin_delete = _of(delete, ADMINISTRATOR)
open_get = _of(get, {"responses": OPEN})
open_post = _of(post, {"responses": CLOSED})
