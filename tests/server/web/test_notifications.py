"""Agents that listen, on a real server and both databases."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent, connect_sse

from bench.server import push, serving
from feed.messages import NOTIFICATIONS_PATH
from server.settings import Policy
from server.storage.database import Database
from tests.support import webserver
from tests.support.webserver import WebServer, wait_for

API = "/api/v1"
AT_ONCE = Policy(notify_per_s=1e6)


@pytest.fixture
def at_once(database: Database, feed: Path) -> Iterator[WebServer]:
    webserver.store_policy(database, AT_ONCE)
    with webserver.served(database, feed) as made:
        yield made


class Listening:
    """An agent's stream, read by a thread."""

    def __init__(self, server: WebServer, agent: dict[str, Any], **headers: str) -> None:
        self.events: list[ServerSentEvent] = []
        self.status = 0
        self._client = server.client(agent["credential"])
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.thread = threading.Thread(target=self._read)
        self.thread.start()
        wait_for(lambda: self.status)

    def _read(self) -> None:
        with (
            contextlib.suppress(httpx.HTTPError),
            self._client as client,
            connect_sse(client, "GET", NOTIFICATIONS_PATH, headers=self._headers) as source,
        ):
            self.status = source.response.status_code
            if self.status == 200:
                for event in source.iter_sse():
                    self.events.append(event)

    @property
    def looks(self) -> list[str]:
        return [event.data for event in self.events if event.event == "look"]


def notify(server: WebServer, admin: str) -> dict[str, Any]:
    with server.client(admin) as client:
        return dict(client.post(f"{API}/notify").json())


def test_connected_agents_are_told_and_their_answers_counted(
    at_once: WebServer, admin: str
) -> None:
    agents = [at_once.enrol(f"host-{number}") for number in range(3)]
    listening = [Listening(at_once, agent) for agent in agents]
    wait_for(lambda: at_once.parts.hub.connected == 3)
    assert notify(at_once, admin)["connected"] == 3
    wait_for(lambda: all(item.looks == ['{"round": 1}'] for item in listening))
    assert [item.events[-1].id for item in listening] == ["1"] * 3
    asked = at_once.check_in(agents[0], "host-0", heard_round=0).json()
    assert (asked["round"], asked["look"]) == (1, True)
    assert at_once.check_in(agents[0], "host-0", heard_round=1).json()["look"] is False

    def counted() -> bool:
        with at_once.client(admin) as client:
            newest = client.get(f"{API}/rounds").json()["rounds"][0]
        return (newest["told"], newest["answered"]) == (3, 1)

    wait_for(counted)
    assert at_once.stop() < 3
    for item in listening:
        item.thread.join(5)
        assert not item.thread.is_alive()


def test_an_offline_agent_is_told_when_it_comes_and_not_once_it_has_answered(
    at_once: WebServer, admin: str
) -> None:
    agent = at_once.enrol("host-1")
    notify(at_once, admin)
    late = Listening(at_once, agent)
    wait_for(lambda: late.looks == ['{"round": 1}'])
    at_once.check_in(agent, "host-1", heard_round=1)
    again = Listening(at_once, agent)
    wait_for(lambda: not late.thread.is_alive())  # the newer replaces it
    notify(at_once, admin)
    wait_for(lambda: again.looks == ['{"round": 2}'])


def test_rounds_outlive_the_server(database: Database, feed: Path, admin: str) -> None:
    webserver.store_policy(database, AT_ONCE)
    with webserver.served(database, feed) as server:
        agent = server.enrol("host-1")
        notify(server, admin)
    with webserver.served(database, feed) as server:
        listening = Listening(server, agent)
        wait_for(lambda: listening.looks == ['{"round": 1}'])


def test_a_revoked_agents_stream_ends(at_once: WebServer, admin: str) -> None:
    agent = at_once.enrol("host-1")
    listening = Listening(at_once, agent)
    wait_for(lambda: at_once.parts.hub.connected == 1)
    with at_once.client(admin) as client:
        client.delete(f"{API}/agents/{agent['agent_id']}")
    wait_for(lambda: not listening.thread.is_alive())
    assert Listening(at_once, agent).status == 401


def test_the_stream_of_a_machine_that_enrols_again_ends(at_once: WebServer, admin: str) -> None:
    listening = Listening(at_once, at_once.enrol("host-1"))
    other = Listening(at_once, at_once.enrol("host-2"))
    again = Listening(at_once, at_once.enrol("host-1"))
    wait_for(lambda: not listening.thread.is_alive())
    wait_for(lambda: at_once.parts.hub.connected == 2)
    notify(at_once, admin)
    wait_for(lambda: other.looks and again.looks)
    assert listening.looks == []


def test_whoever_leaves_is_forgotten(at_once: WebServer) -> None:
    agent = at_once.enrol("host-1")
    with (
        at_once.client(agent["credential"]) as client,
        client.stream("GET", NOTIFICATIONS_PATH) as stream,
    ):
        lines = stream.iter_lines()
        assert next(lines).startswith("retry: ")
        wait_for(lambda: at_once.parts.hub.connected == 1)
    wait_for(lambda: at_once.parts.hub.connected == 0)


def test_a_round_that_was_acknowledged_outlives_sigkill(tmp_path: Path) -> None:
    """The server dies before the window has passed; whoever returns is told all the same."""
    feed = tmp_path / "feed"
    feed.mkdir()
    credentials = push._enrolled(tmp_path, 20)
    with serving.process(tmp_path, feed, notify_per_s=1.0) as server:
        listeners = push._connect(server, credentials)
        assert push._ask(server)["round"] == 1
        os.kill(server.pid, signal.SIGKILL)
    with serving.process(tmp_path, feed, notify_per_s=1e6) as server:
        again = push._connect(server, credentials)
        for listener in again:
            told = b""
            while b"event: look" not in told:
                told += listener.recv(4096)
            assert b'data: {"round": 1}' in told
    for listener in [*listeners, *again]:
        listener.close()
