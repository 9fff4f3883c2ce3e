"""What one client may take, so that a flood of one leaves room for others.

* A request's body: its size (413), the time until it is there (408), and what
  bodies hold of the memory until they are answered, in all and of one address
  (503).
* How often one agent, or one address, may do something (429).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from feed.pacing import Bucket
from server.errors import RefusedError
from server.settings import Limits
from server.web import problems
from server.web.asgi import App, Message, Receive, Scope, Send, address, header

PENDING_BYTES_MAX = 128 << 20  # of all bodies under way
PENDING_SHARE = 4  # one address may hold a fourth of it
KEYS_MAX = 100_000  # of one limit that are remembered


class Rates:
    """So many a second for each key, and `burst` at once; the rarest seen is forgotten first."""

    def __init__(
        self, *, per_s: float, burst: float, clock: Callable[[], float], keys_max: int = KEYS_MAX
    ) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._keys_max = keys_max
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, key: str) -> float:
        """Seconds to wait; 0: go ahead. Who is refused has taken nothing."""
        now = self._clock()
        bucket = self._buckets.get(key) or Bucket.full(self._per_s, burst=self._burst, now_s=now)
        taken, wait_s = bucket.take(1, now_s=now)
        if wait_s > 0:
            return wait_s
        self._buckets[key] = taken
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._keys_max:
            self._buckets.popitem(last=False)
        return 0.0

    def is_spent(self, key: str) -> float:
        """Seconds until `key` has something left, without taking it."""
        bucket = self._buckets.get(key)
        return bucket.take(1, now_s=self._clock())[1] if bucket else 0.0

    def check(self, key: str, *, what: str) -> None:
        """Take one, or raise RefusedError 429 that says when to come back."""
        if wait_s := self.take(key):
            raise too_many(what, wait_s)


def too_many(what: str, wait_s: float) -> RefusedError:
    """429."""
    return RefusedError(
        f"too many {what}; come back in {max(1.0, wait_s):.0f} s",
        status=429,
        code="too_many_requests",
        retry_after_s=wait_s,
    )


class Bodies:
    """An application behind which every body is whole, in time and of an allowed size."""

    def __init__(self, app: App, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._pending = 0
        self._pending_of: dict[str, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        holding = _Holding(self, address(scope))
        try:
            try:
                body = await self._read(scope, receive, holding)
            except RefusedError as error:
                await problems.answer(scope, send, problems.of(error), close=True)
                return
            if body is not None:
                await self._app(scope, _replayed(body, receive), send)
        finally:
            holding.release()

    async def _read(self, scope: Scope, receive: Receive, holding: _Holding) -> bytes | None:
        """The body; None: the client has left."""
        limit = self._limits.body_bytes_max
        told = header(scope, b"content-length")
        if told is not None and told.isdecimal() and int(told[:20]) > limit:
            raise _too_long(limit)
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    piece = message.get("body", b"")
                    if len(body) + len(piece) > limit:
                        raise _too_long(limit)
                    holding.take(len(piece))
                    body += piece
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError as error:
            sentence = f"the body wasn't there within {self._limits.body_s:g} s"
            raise RefusedError(sentence, status=408, code="body_too_slow") from error

    def hold(self, source: str, amount: int) -> None:
        """Count bytes of a body; less than 0: they are free. Raises RefusedError 503."""
        held = self._pending_of.get(source, 0) + amount
        if amount > 0 and (
            self._pending + amount > PENDING_BYTES_MAX or held > PENDING_BYTES_MAX // PENDING_SHARE
        ):
            raise RefusedError("too many bodies are under way", status=503, code="busy")
        self._pending += amount
        self._pending_of[source] = held
        if not held:
            del self._pending_of[source]


class _Holding:
    """What one request holds."""

    def __init__(self, bodies: Bodies, source: str) -> None:
        self._bodies = bodies
        self._source = source
        self._held = 0

    def take(self, amount: int) -> None:
        self._bodies.hold(self._source, amount)
        self._held += amount

    def release(self) -> None:
        if self._held:
            self._bodies.hold(self._source, -self._held)
        self._held = 0


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


def _too_long(limit: int) -> RefusedError:
    return RefusedError(f"a body has at most {limit:,} bytes", status=413, code="body_too_large")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What the application receives: the whole body once, then whatever comes."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay
