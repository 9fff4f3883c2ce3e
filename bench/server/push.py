"""Ten thousand agents that listen: how soon the last is told, and what one costs.

The agents are sockets of this process; the server is one process beside it,
on a real database, with every connection authenticated.
"""

from __future__ import annotations

import base64
import hashlib
import select
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import insert

from bench import machine
from bench.figures import Figure, Section
from bench.idle import pss_mb
from bench.server import bare, serving
from bench.server.serving import Serving
from feed.messages import API, NOTIFICATIONS_PATH
from server.storage.database import Database
from server.storage.tables import Agent

AGENTS = 10_000
WINDOW_S = 2.0
LATE_S = 1.0
KIB_MAX = 12.0
CONNECT_AT_ONCE = 200
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Told:
    """One round: seconds after its window's end at which agents were told, and how many."""

    late_s: tuple[float, ...]
    window_s: float
    after_start_s: tuple[float, ...]

    def percentile(self, share: float) -> float:
        """Of the seconds since the round was made."""
        count = len(self.after_start_s)
        return self.after_start_s[min(count - 1, int(share * count))]


def run(*, quick: bool) -> Section:
    """Connect all of them; a round over a window, and one at once."""
    agents = 1_000 if quick else AGENTS
    with machine.folder() as place:
        spread, cost_kib = _measure(place / "spread", agents, agents / WINDOW_S)
        at_once, _ = _measure(place / "at-once", agents, 1e6)
    with bare.process() as peer:
        theirs, their_kib = _hold(peer, ["none"] * agents)
    lost = agents - len(spread.late_s) + agents - len(at_once.late_s)
    p50, p99 = (at_once.percentile(share) * 1e3 for share in (0.5, 0.99))
    peer_p50, peer_p99 = (theirs.percentile(share) * 1e3 for share in (0.5, 0.99))
    return Section(
        title="Telling agents to look",
        how=f"{agents:,} agents with credentials of their own hold a stream of events to one "
        "server process over loopback TCP; then an administrator notifies. Memory: what the "
        "server's PSS grows by, kernel buffers apart. The peer is a bare ASGI loop on uvicorn "
        "that neither authenticates nor accounts.",
        figures=(
            Figure(
                f"the last of {agents:,} after the window's end ({spread.window_s:.1f} s)",
                f"{max(spread.late_s) * 1e3:.0f} ms",
                goal=f"at most {LATE_S:g} s",
                met=max(spread.late_s) <= LATE_S,
            ),
            Figure(
                "all at once, p50/p99",
                f"{p50:.0f}/{p99:.0f} ms",
                f"{peer_p50:.0f}/{peer_p99:.0f} ms (bare loop)",
                ratio=p99 / peer_p99,
                goal=f"p99 at most {LATE_S:g} s",
                met=p99 <= LATE_S * 1e3,
            ),
            Figure("lost", f"{lost}", goal="none", met=lost == 0),
            Figure(
                "memory a connection",
                f"{cost_kib:.1f} KiB",
                f"{their_kib:.1f} KiB (bare loop)",
                ratio=cost_kib / their_kib,
                goal=f"at most {KIB_MAX:g} KiB",
                met=cost_kib <= KIB_MAX,
            ),
        ),
    )


def _enrolled(place: Path, agents: int) -> list[str]:
    """That many agents in a database; their credentials."""
    database = Database(f"sqlite:///{place / 'server.db'}")
    database.migrate()
    ids = [f"{number:032x}" for number in range(agents)]
    secrets = [
        base64.urlsafe_b64encode(hashlib.sha256(name.encode()).digest()).rstrip(b"=").decode()
        for name in ids
    ]
    rows = [
        {
            "id": name,
            "host_id": name,
            "name": name,
            "group": "default",
            "platform": "linux",
            "agent_version": "0.1.0",
            "region": "global",
            "traits": {},
            "credential": hashlib.sha256(secret.encode()).hexdigest(),
            "enrolled_at": 0.0,
            "enrolled_with": "",
            "seen_at": 0.0,
        }
        for name, secret in zip(ids, secrets, strict=True)
    ]
    database.write_blocking(lambda session: session.execute(insert(Agent), rows) and None)
    database.close()
    return [f"hfagt_{name}_{secret}" for name, secret in zip(ids, secrets, strict=True)]


def _measure(place: Path, agents: int, per_s: float) -> tuple[Told, float]:
    (place / "feed").mkdir(parents=True)
    credentials = _enrolled(place, agents)
    with serving.process(place, place / "feed", notify_per_s=per_s) as server:
        return _hold(server, credentials)


def _hold(server: Serving, credentials: Sequence[str]) -> tuple[Told, float]:
    """Connect everybody, and tell them; what a connection costs, in KiB."""
    before = pss_mb(server.pid)
    listeners = _connect(server, credentials)
    try:
        time.sleep(3)  # what connecting left to do
        cost_kib = (pss_mb(server.pid) - before) * 1e6 / 1024 / len(listeners)
        return _notify(server, listeners), cost_kib
    finally:
        for listener in listeners:
            listener.close()


def _connect(server: Serving, credentials: Sequence[str]) -> list[socket.socket]:
    """Every agent's stream, its greeting read."""
    made: list[socket.socket] = []
    for start in range(0, len(credentials), CONNECT_AT_ONCE):
        some = []
        for credential in credentials[start : start + CONNECT_AT_ONCE]:
            agent = socket.create_connection(("127.0.0.1", server.port))
            head = f"GET {NOTIFICATIONS_PATH} HTTP/1.1\r\nHost: s\r\nAccept: text/event-stream\r\n"
            agent.sendall(f"{head}Authorization: Bearer {credential}\r\n\r\n".encode())
            some.append(agent)
        for agent in some:
            greeting = b""
            while b"retry:" not in greeting:
                piece = agent.recv(4096)
                assert piece, greeting
                greeting += piece
        made += some
    return made


def _notify(server: Serving, listeners: Sequence[socket.socket]) -> Told:
    poll = select.epoll()
    for listener in listeners:
        listener.settimeout(0)
        poll.register(listener, select.EPOLLIN)
    by_number = {listener.fileno(): listener for listener in listeners}
    with ThreadPoolExecutor(1) as asking:
        asked = asking.submit(_ask, server)
        at: list[float] = []
        deadline = time.time() + PATIENCE_S
        while len(at) < len(listeners) and time.time() < deadline:
            for number, _ in poll.poll(1.0, 1024):
                if b"event: look" in by_number[number].recv(4096):
                    at.append(time.time())
        window_s = asked.result()["window_s"]
    made_at = _made_at(server)
    poll.close()
    at.sort()
    return Told(
        late_s=tuple(moment - made_at - window_s for moment in at),
        window_s=window_s,
        after_start_s=tuple(moment - made_at for moment in at),
    )


def _ask(server: Serving) -> Any:
    return httpx.post(
        f"http://127.0.0.1:{server.port}{API}/notify",
        headers={"Authorization": f"Bearer {server.token}"},
        timeout=PATIENCE_S,
        trust_env=False,
    ).json()


def _made_at(server: Serving) -> float:
    rounds = httpx.get(
        f"http://127.0.0.1:{server.port}{API}/rounds",
        headers={"Authorization": f"Bearer {server.token}"},
        trust_env=False,
    ).json()
    return float(rounds["rounds"][0]["created_at"])
