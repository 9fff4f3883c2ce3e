"""How a refusal looks on the wire: {"code", "sentence", "request_id"} with its status."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import msgspec

from server.errors import BusyError, RefusedError, ServerError
from server.log import get_logger
from server.web.asgi import Headers, Scope, Send, state

REQUEST_ID = b"x-request-id"
LATER_S = 5.0  # where nothing better is known
SAY_S = 10.0  # what fails for everybody is logged no more often

log = get_logger()


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every answer that isn't the one asked for."""

    code: str
    sentence: str
    request_id: str = ""


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A Problem with the status and headers it travels with."""

    status: int
    code: str
    sentence: str
    retry_after_s: float | None = None
    headers: tuple[tuple[str, str], ...] = ()


def of(error: ServerError) -> Refusal:
    """The refusal for an error of the server. What isn't meant for the client passes: 503."""
    if isinstance(error, BusyError):
        return Refusal(status=409, code=error.code, sentence=str(error))
    if not isinstance(error, RefusedError):
        sentence = "the server can't answer this now; its log says why"
        return Refusal(status=503, code=error.code, sentence=sentence, retry_after_s=LATER_S)
    later = error.retry_after_s
    if later is None and error.status in {429, 503}:
        later = LATER_S
    challenge = (("www-authenticate", "Bearer"),) if error.status == 401 else ()
    return Refusal(
        status=error.status,
        code=error.code,
        sentence=str(error),
        retry_after_s=later,
        headers=challenge,
    )


def with_headers(refusal: Refusal, **more: str) -> Refusal:
    """The same with further headers."""
    return msgspec.structs.replace(refusal, headers=(*refusal.headers, *more.items()))


def headers(refusal: Refusal) -> dict[str, str]:
    """All of its headers but those of the body."""
    told = dict(refusal.headers) | {"cache-control": "no-store"}
    if refusal.retry_after_s is not None:
        told["retry-after"] = str(max(1, math.ceil(refusal.retry_after_s)))
    return told


def body(refusal: Refusal, request_id: str) -> bytes:
    problem = Problem(code=refusal.code, sentence=refusal.sentence, request_id=request_id)
    return msgspec.json.encode(problem)


class Failures:
    """What fails on the server's side for a whole fleet at once, in few lines of the log."""

    def __init__(self, event: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._event = event
        self._clock = clock
        self._unsaid = 0
        self._said_at: float | None = None

    def of(self, error: ServerError) -> Refusal:
        """As `of`; what the answer doesn't say is logged: the first, then every SAY_S."""
        if not isinstance(error, RefusedError):
            self._note(error)
        return of(error)

    def _note(self, error: ServerError) -> None:
        self._unsaid += 1
        now = self._clock()
        if self._said_at is None or now - self._said_at >= SAY_S:
            log.warning(self._event, code=error.code, reason=str(error), requests=self._unsaid)
            self._said_at, self._unsaid = now, 0


async def answer(scope: Scope, send: Send, refusal: Refusal, *, close: bool = False) -> None:
    """Say it. close: the rest of the request isn't read."""
    request_id = state(scope).get("request_id", "")
    data = body(refusal, request_id)
    fields: Headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(data)).encode()),
        (REQUEST_ID, request_id.encode()),
        *((name.encode(), value.encode()) for name, value in headers(refusal).items()),
    ]
    if close:
        fields.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": fields})
    await send({"type": "http.response.body", "body": data})
