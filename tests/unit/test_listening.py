"""The listener: it goes on, whatever a server does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import pytest

from agent.fetcher import listening
from agent.fetcher.listening import Connected, Event, Heard, Listener, Lost
from feed.errors import SecurityServerError


class Client:
    """A server whose streams are given: rounds, or what goes wrong, one list a connection."""

    url = "https://s"

    def __init__(self, *streams: Iterable[int | Exception]) -> None:
        self._streams = list(streams)
        self.after: list[int] = []
        self.retry_s = 0.0

    @contextlib.contextmanager
    def notifications(self, *, bearer: str, after: int) -> Iterator[Iterator[int]]:
        assert bearer == "secret"
        self.after.append(after)
        yield self._rounds(self._streams.pop(0))

    def _rounds(self, stream: Iterable[int | Exception]) -> Iterator[int]:
        for item in stream:
            if isinstance(item, Exception):
                raise item
            yield item


class Clock:
    """Time that only passes in `sleep`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def heard(
    client: Client, *, times: int = 1, clock: Clock | None = None
) -> tuple[list[Event], list[float]]:
    """What is said in so many connections, and the pauses after them."""
    events: list[Event] = []
    clock = clock or Clock()
    listener = Listener(
        client,  # type: ignore[arg-type]
        bearer=lambda: "secret",
        on_event=events.append,
        clock=clock,
        sleep=clock.sleep,
    )
    return events, [listener._once() for _ in range(times)]


@pytest.mark.parametrize(
    "error", [OverflowError("too large"), RecursionError(), SecurityServerError("away")]
)
def test_an_error_nobody_expects_is_a_lost_connection(error: Exception) -> None:
    client = Client([700, 7, error], [8])
    events, pauses = heard(client, times=2)
    assert [type(item) for item in events] == [
        *(Connected, Heard, Heard, Lost),
        *(Connected, Heard, Lost),
    ]
    assert client.after == [0, 7]
    assert all(pause >= 0 for pause in pauses)


def test_a_flood_is_read_slowly_and_the_same_round_is_heard_once_a_second() -> None:
    clock = Clock()
    events, _ = heard(Client([7] * 1000, [8] * 10), times=2, clock=clock)
    assert clock.now - 1000 == pytest.approx(1010 * listening.GAP_S)
    rounds = [item.round for item in events if isinstance(item, Heard)]
    assert set(rounds) == {7, 8}
    assert rounds.count(7) == pytest.approx(1000 * listening.GAP_S / listening.SAME_S, abs=3)
    assert rounds.count(8) == 1


def test_the_same_round_is_heard_again_later() -> None:
    clock = Clock()

    def stream() -> Iterator[int]:
        yield 7
        clock.sleep(60)
        yield 7

    events, _ = heard(Client(stream()), clock=clock)
    assert events[1:3] == [Heard(7), Heard(7)]


def test_who_comes_back_waits_as_long_as_the_server_asks() -> None:
    client = Client([7], [SecurityServerError("busy", status=503, retry_after_s=90.0)])
    client.retry_s = 40.0
    _, (after_loss, after_refusal) = heard(client, times=2)
    assert 40 <= after_loss <= 44
    assert 90 <= after_refusal <= 99
