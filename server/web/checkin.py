"""The one request that every agent makes every few minutes, past the API's machinery.

It says and answers what `agents.check_in` describes, by the same function; it
stands before it because Litestar's part of a request costs several times what
is done for it here (docs/performance.md, "Check-ins").
"""

from __future__ import annotations

import msgspec

from feed.messages import CHECK_IN_PATH, CheckIn
from server.errors import ServerError
from server.web import agents, problems
from server.web.asgi import App, Headers, Message, Receive, Scope, Send
from server.web.parts import Parts
from server.web.wire import UNDECODABLE, malformed

_decode = msgspec.json.Decoder(CheckIn).decode
_encode = msgspec.json.Encoder().encode


class CheckInApp:
    """Answers check-ins; everything else is the API's. Bodies have been bounded."""

    def __init__(self, parts: Parts, api: App) -> None:
        self._parts = parts
        self._api = api
        self._failures = problems.Failures("check_in_failed")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != CHECK_IN_PATH or scope["method"] != "POST":
            await self._api(scope, receive, send)
            return
        try:
            agent = await self._parts.door.agent(scope)
            said = _said((await receive()).get("body", b""))
            reply = await agents.checked_in(self._parts, agent, said)
        except ServerError as error:
            await problems.answer(scope, send, self._failures.of(error))
            return
        await _answer(send, _encode(reply))


def _said(data: bytes) -> CheckIn:
    """Raises RefusedError 400."""
    try:
        return _decode(data)
    except UNDECODABLE as error:
        raise malformed(error) from error


async def _answer(send: Send, data: bytes) -> None:
    fields: Headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(data)),
    ]
    start: Message = {"type": "http.response.start", "status": 200, "headers": fields}
    await send(start)
    await send({"type": "http.response.body", "body": data})
