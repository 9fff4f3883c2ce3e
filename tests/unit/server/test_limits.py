"""What one client may take: bodies and rates."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.errors import RefusedError
from server.settings import Limits
from server.web import limits as limiting
from server.web.asgi import Message, Receive, Scope, Send, address
from server.web.limits import Bodies, Rates

LIMITS = Limits(body_bytes_max=1024, body_s=0.1)


class Client:
    """Sends a body in pieces; None in place of a piece: nothing more comes."""

    def __init__(self, *pieces: bytes | None, headers: dict[str, str] | None = None) -> None:
        self._pieces = list(pieces)
        told = {"transfer-encoding": "chunked"} if headers is None else headers
        self.headers = [(name.encode(), value.encode()) for name, value in told.items()]
        self.status = 0
        self.fields: dict[bytes, bytes] = {}

    async def receive(self) -> Message:
        piece = self._pieces.pop(0) if self._pieces else None
        if piece is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": piece, "more_body": bool(self._pieces)}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.fields = dict(message["headers"])

    def scope(self, host: str = "10.0.0.1") -> Scope:
        return {"type": "http", "method": "POST", "headers": self.headers, "client": (host, 1)}


async def echo(_scope: Scope, receive: Receive, send: Send) -> None:
    seen.append((await receive())["body"])
    await send({"type": "http.response.start", "status": 200, "headers": []})


seen: list[bytes] = []


def asked(client: Client, bodies: Bodies | None = None) -> int:
    seen.clear()
    app = bodies or Bodies(echo, LIMITS)
    asyncio.run(app(client.scope(), client.receive, client.send))  # type: ignore[arg-type]
    return client.status


def test_a_body_in_pieces_arrives_whole() -> None:
    assert asked(Client(b"ab", b"cd", b"")) == 200
    assert seen == [b"abcd"]


def test_a_body_that_says_it_is_too_large_is_refused_unread() -> None:
    client = Client(None, headers={"content-length": "1025"})
    assert asked(client) == 413
    assert client.fields[b"connection"] == b"close"
    assert asked(Client(None, headers={"content-length": "9" * 4000})) == 413


def test_a_body_that_turns_out_too_large_is_refused() -> None:
    assert asked(Client(*[b"x" * 600] * 3)) == 413


def test_a_body_that_never_ends_is_given_up() -> None:
    assert asked(Client(b"x", None)) == 408


def test_bodies_under_way_of_one_address_leave_room_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limiting, "PENDING_BYTES_MAX", 4000)
    app = Bodies(echo, Limits(body_bytes_max=1024, body_s=1.0))

    async def story() -> tuple[list[int], int]:
        greedy = [Client(b"x" * 400, None) for _ in range(5)]
        tasks = [asyncio.create_task(app(c.scope("10.9.9.9"), c.receive, c.send)) for c in greedy]  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        modest = Client(b"x" * 400, b"")
        await app(modest.scope("10.0.0.2"), modest.receive, modest.send)
        for task in tasks:
            await task
        return [client.status for client in greedy], modest.status

    statuses, modest = asyncio.run(story())
    assert statuses.count(503) == 3
    assert modest == 200
    assert app._pending == 0
    assert app._pending_of == {}


def test_a_body_counts_until_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiting, "PENDING_BYTES_MAX", 4000)

    async def story() -> tuple[list[int], Bodies]:
        answered = asyncio.Event()

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            await answered.wait()
            await echo(scope, receive, send)

        app = Bodies(slow, LIMITS)
        clients = [Client(b"x" * 400) for _ in range(4)]
        tasks = [asyncio.create_task(app(c.scope(), c.receive, c.send)) for c in clients]  # type: ignore[arg-type]
        while not any(client.status for client in clients):
            await asyncio.sleep(0)
        held = app._pending
        answered.set()
        await asyncio.gather(*tasks)
        assert held == 800
        return [client.status for client in clients], app

    statuses, app = asyncio.run(story())
    assert sorted(statuses) == [200, 200, 503, 503]
    assert (app._pending, app._pending_of) == (0, {})


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_lets_a_burst_through_then_so_many_a_second() -> None:
    clock = Clock()
    rates = Rates(per_s=2.0, burst=5, clock=clock)
    assert [rates.take("a") for _ in range(5)] == [0.0] * 5
    assert rates.take("a") == pytest.approx(0.5)
    assert rates.take("b") == 0.0
    clock.now = 0.5
    assert rates.take("a") == 0.0
    assert rates.take("a") > 0


def test_who_is_refused_does_not_wait_the_longer_for_it() -> None:
    clock = Clock()
    rates = Rates(per_s=1.0, burst=1, clock=clock)
    rates.take("a")
    waits = [rates.take("a") for _ in range(100)]
    assert max(waits) == pytest.approx(1.0)
    with pytest.raises(RefusedError) as refused:
        rates.check("a", what="requests")
    assert (refused.value.status, refused.value.retry_after_s) == (429, pytest.approx(1.0))


def test_keys_are_forgotten_before_they_fill_the_memory() -> None:
    rates = Rates(per_s=1.0, burst=1, clock=Clock(), keys_max=10)
    for number in range(1000):
        rates.take(str(number))
    assert len(rates._buckets) == 10


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("/run/socket", "unknown"),
    ],
)
def test_an_address_counts_with_its_network(host: str, counted: str) -> None:
    scope: dict[str, Any] = {"client": (host, 1)}
    assert address(scope) == counted
