"""Check-ins a second on SQLite and PostgreSQL, beside a bare Litestar handler.

    python -m bench.server.checkins KIND URL FEED

is one of the servers: `bare` answers a decoded check-in with a constant, on
the same uvicorn; `holdfast` is the whole server. Each agent has a credential
of its own. A check-in is answered once it is durable.
"""

from __future__ import annotations

import asyncio
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil
from litestar import Litestar, post

from bench import machine
from bench.figures import Figure, Section
from bench.server.serving import LIMITS, ROOT, _Speaking
from feed.messages import CHECK_IN_PATH, CheckIn, CheckInReply, Enrolled, EnrolRequest, Facts
from server.accounts import access, enrolment
from server.accounts.credentials import AgentIdentity
from server.fleet.checkins import CheckIns
from server.log import configure
from server.settings import Policy
from server.storage.database import Database
from server.web.app import build
from server.web.connections import Connections, uvicorn_config
from tests.support import databases, webserver

AGENTS = 2_000
CONNECTIONS = 128
SHARE_MIN = 0.5  # of what the bare handler reaches
IN_PROCESS_PER_S = 3_000
ROUNDS = 3


@dataclass(frozen=True)
class Rate:
    """Check-ins a second, and the seconds of the slowest in a hundred."""

    per_s: float
    p99_s: float
    cpu_s: float = 0.0  # of the server, for one

    def __str__(self) -> str:
        cpu = f", {self.cpu_s * 1e6:.0f} µs of CPU each" if self.cpu_s else ""
        return f"{self.per_s:,.0f}/s, p99 {self.p99_s * 1e3:.0f} ms{cpu}"


def run(*, quick: bool) -> Section:
    """The same requests to each server, in turn."""
    agents = 500 if quick else AGENTS
    with machine.folder() as place:
        (place / "feed").mkdir()
        urls = {"SQLite": f"sqlite:///{place / 'server.db'}"}
        with _postgresql(urls):
            figures = _measured(place / "feed", urls, agents)
    missing = databases.why_not()
    return Section(
        title="Check-ins",
        how=f"{agents:,} agents check in over {CONNECTIONS} connections on loopback to one "
        "process; each waits for its answer, which comes once what it said is durable. The "
        "peer decodes the same request and answers a constant, on the same uvicorn with "
        f"uvloop, in turns; the best of {ROUNDS}."
        + (f" PostgreSQL: {missing}." if missing else ""),
        figures=tuple(figures),
    )


@contextmanager
def _postgresql(urls: dict[str, str]) -> Iterator[None]:
    if databases.why_not():
        yield
        return
    with databases.durable_cluster() as folder:
        urls["PostgreSQL"] = databases.url(folder, "postgres")
        yield


def _measured(feed: Path, urls: dict[str, str], agents: int) -> list[Figure]:
    within, over = {}, {}
    bare: list[Rate] = []
    for name, url in urls.items():
        machines = _enrolled(url, agents)
        within[name] = _in_process(url, machines)
        requests = [_request(number, agent) for number, agent in enumerate(machines)]
        with _serving("bare", url, feed) as peer, _serving("holdfast", url, feed) as ours:
            _ask(ours[1], requests)  # what is looked up once
            turns = [(_asked(*peer, requests), _asked(*ours, requests)) for _ in range(ROUNDS)]
        bare.append(_best([turn[0] for turn in turns]))
        over[name] = _best([turn[1] for turn in turns])
    peers = dict(zip(urls, bare, strict=True))
    return [
        *(
            Figure(
                f"over HTTP, {name}",
                str(rate),
                str(peers[name]),
                ratio=rate.per_s / peers[name].per_s,
                goal=f"at least {SHARE_MIN:g} of it",
                met=rate.per_s >= SHARE_MIN * peers[name].per_s,
            )
            for name, rate in over.items()
        ),
        *(
            Figure(
                f"in the process, {name}",
                str(rate),
                goal=f"at least {IN_PROCESS_PER_S:,}/s",
                met=rate.per_s >= IN_PROCESS_PER_S,
            )
            for name, rate in within.items()
        ),
    ]


def _best(rates: Sequence[Rate]) -> Rate:
    return max(rates, key=lambda rate: rate.per_s)


def _facts(number: int) -> Facts:
    return Facts(
        host_id=f"{number:032x}",
        name=f"machine-{number}",
        platform="linux-x86_64",
        agent_version="1.0.0",
        traits={"scan": "smart"},
        active_release="2026.11.1",
        components={f"component-{place}": "17.591.00" for place in range(9)},
        state="idle",
    )


def _enrolled(url: str, agents: int) -> list[Enrolled]:
    database = Database(url)
    database.migrate()
    now = time.time()
    token = database.write_blocking(
        lambda session: access.issue(session, kind="enrol", name="bench", now=now)
    )
    made: list[Enrolled] = []
    for start in range(0, agents, 500):
        some = [EnrolRequest(facts=_facts(n)) for n in range(start, min(start + 500, agents))]
        made += database.write_blocking(
            lambda session, some=some: [  # type: ignore[misc]
                enrolment.enrol(session, token, one, now=now, check_in_s=300.0) for one in some
            ]
        )
    database.close()
    return made


def _in_process(url: str, machines: Sequence[Enrolled]) -> Rate:
    """Without HTTP: what the database and its batches allow."""
    database = Database(url)
    said = [
        (AgentIdentity(agent.agent_id, "agent", agent.group), CheckIn(facts=_facts(number)))
        for number, agent in enumerate(machines)
    ]

    async def all_of_them() -> Rate:
        taking, times = CheckIns(database, Policy), []
        waiting = iter(said)

        async def connection() -> None:
            for identity, what in waiting:
                began = time.perf_counter()
                await taking.take(identity, what, now=time.time())
                times.append(time.perf_counter() - began)

        began = time.perf_counter()
        await asyncio.gather(*[connection() for _ in range(CONNECTIONS)])
        return _rate(times, time.perf_counter() - began)

    rates = [asyncio.run(all_of_them()) for _ in range(ROUNDS)]
    database.close()
    return _best(rates)


def _rate(times: list[float], seconds: float) -> Rate:
    return Rate(len(times) / seconds, sorted(times)[int(len(times) * 0.99)])


def _request(number: int, agent: Enrolled) -> bytes:
    body = msgspec.json.encode(CheckIn(facts=_facts(number)))
    head = (
        f"POST {CHECK_IN_PATH} HTTP/1.1\r\nHost: s\r\nAuthorization: Bearer {agent.credential}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _asked(server: psutil.Process, port: int, requests: Sequence[bytes]) -> Rate:
    """As `_ask`, with what it cost the server."""
    before = server.cpu_times()
    rate = _ask(port, requests)
    after = server.cpu_times()
    spent = after.user + after.system - before.user - before.system
    return Rate(rate.per_s, rate.p99_s, spent / len(requests))


def _ask(port: int, requests: Sequence[bytes]) -> Rate:
    """Every request once; each connection waits for its answer before the next."""
    waiting, times = iter(requests), []
    doors = [socket.create_connection(("127.0.0.1", port)) for _ in range(CONNECTIONS)]
    poll, asked = select.epoll(), {}
    began = time.perf_counter()
    for door, request in zip(doors, waiting, strict=False):
        poll.register(door, select.EPOLLIN)
        asked[door.fileno()] = (door, time.perf_counter())
        door.sendall(request)
    while asked:
        for number, _ in poll.poll():
            door, since = asked.pop(number)
            _answered(door)
            times.append(time.perf_counter() - since)
            if request := next(waiting, b""):
                asked[number] = (door, time.perf_counter())
                door.sendall(request)
    seconds = time.perf_counter() - began
    poll.close()
    for door in doors:
        door.close()
    return _rate(times, seconds)


def _answered(door: socket.socket) -> None:
    answer = door.recv(65536)
    while not (answer.endswith(b"}") and b"\r\n\r\n" in answer):
        piece = door.recv(65536)
        assert piece, answer
        answer += piece
    assert answer.startswith(b"HTTP/1.1 200"), answer


@contextmanager
def _serving(kind: str, url: str, feed: Path) -> Iterator[tuple[psutil.Process, int]]:
    """A server in a process of its own, and its port."""
    command = [sys.executable, "-m", "bench.server.checkins", kind, url, str(feed)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert running.stdout is not None
    try:
        port = int(running.stdout.readline().split()[0])
        yield psutil.Process(running.pid), port
    finally:
        running.terminate()
        running.wait(30)
        running.stdout.close()


@post(CHECK_IN_PATH, status_code=200)
async def _constant(data: CheckIn) -> CheckInReply:
    return CheckInReply(round=0, look=False, check_in_s=data.facts and 300.0)


async def _nothing() -> None:
    """The bare server has nothing to close."""


def main() -> None:
    kind, url, feed = sys.argv[1:]
    configure("warning", program="bench")
    database = Database(url)
    closing: Callable[[], Any] = _nothing
    if kind == "bare":
        app: Any = Litestar([_constant], logging_config=None)
        connections = Connections()
    else:
        made = webserver.parts(database, Path(feed), limits=LIMITS)
        app, connections, closing = build(made), made.connections, made.hub.close
    config = uvicorn_config(app, LIMITS, connections, host="127.0.0.1", port=0)
    server = _Speaking(config, closing=closing)
    try:
        server.run()
    except KeyboardInterrupt:
        pass
    finally:
        database.close()


if __name__ == "__main__":
    main()
