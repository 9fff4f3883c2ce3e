"""The listener: it goes on, whatever a server does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import pytest

from agent.fetcher.listening import Connected, Event, Heard, Listener, Lost
from feed.errors import SecurityServerError


class Client:
    """A server whose streams are given: rounds, or what goes wrong, one list a connection."""

    url = "https://s"

    def __init__(self, *streams: Iterable[int | Exception]) -> None:
        self._streams = list(streams)
        self.after: list[int] = []

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


def heard(client: Client, *, times: int = 1) -> tuple[list[Event], list[float]]:
    """What is said in so many connections, and the pauses after them."""
    events: list[Event] = []
    listener = Listener(client, bearer=lambda: "secret", on_event=events.append)  # type: ignore[arg-type]
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
