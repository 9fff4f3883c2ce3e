"""A small Security Server that behaves: it enrols, notifies, takes reports, serves a feed.

    with SecurityServer(vendor.feed, tls=True) as server:
        endpoint.ctl("enroll", server.url, server.token())
        server.notify()
        server.wait_for(lambda: server.reports)

It keeps what a real one keeps (credentials by their text, each attempt once) over
stop() and start(), and fails where a test says so: `answers[path]` is an answer
given instead, `refuse_reports` names attempts that are malformed to it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import msgspec
import trustme

from feed import messages
from feed.messages import (
    AUTHORITY_PATH,
    CHECK_IN_PATH,
    CREDENTIAL_PATH,
    ENROL_PATH,
    FEED_PATH,
    NOTIFICATIONS_PATH,
    REPORTS_PATH,
    Authority,
    CheckIn,
    CheckInReply,
    Enrolled,
    EnrolRequest,
    NewCredential,
    Report,
    Reports,
    ReportsTaken,
)

WAIT_S = 30.0


@dataclass
class Agent:
    """An enrolled machine."""

    id: str
    credential: str
    next: str | None = None
    answered: int = 0
    revoked: bool = False
    check_ins: list[CheckIn] = field(default_factory=list)


class SecurityServer:
    """See the module. check_in_s and heartbeat_s are what it goes by; rotate asks for that."""

    def __init__(
        self, feed: Path, *, tls: bool = False, check_in_s: float = 300.0, heartbeat_s: float = 1.0
    ) -> None:
        self.feed = feed
        self.check_in_s = check_in_s
        self.heartbeat_s = heartbeat_s
        self.rotate = False
        self.tokens: set[str] = set()
        self.agents: dict[str, Agent] = {}
        self.reports: dict[str, Report] = {}
        self.batches: list[Reports] = []
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.refuse_reports: set[str] = set()
        self.requests: list[tuple[str, str, str]] = []  # method, path, bearer
        self.last_event_ids: list[str | None] = []
        self.round = 0
        self.listening = 0
        self.changed = threading.Condition()
        self._port = 0
        self._http: ThreadingHTTPServer | None = None
        self._tls: ssl.SSLContext | None = None
        self.authority = ""
        if tls:
            maker = trustme.CA()
            self.authority = maker.cert_pem.bytes().decode()
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            maker.issue_cert("127.0.0.1").configure_cert(self._tls)

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    @property
    def pin(self) -> str:
        """Of its authority."""
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.authority)).hexdigest()

    def token(self, *, pin: str | None = None) -> str:
        """A new enrolment token, with the pin of the own authority or another."""
        text = f"hfenr_{secrets.token_hex(16)}_{secrets.token_urlsafe(32)}"
        if self._tls or pin:
            text += f"_{pin or self.pin}"
        self.tokens.add(text)
        return text

    def start(self) -> None:
        """Serve, on the same port as before."""
        server = self

        class Handler(_Handler):
            owner = server

        self._http = _Server(("127.0.0.1", self._port), Handler, self._tls)
        self._port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Go away, and cut every connection."""
        if self._http:
            http, self._http = self._http, None
            http.shutdown()
            http.cut()
            with self.changed:
                self.changed.notify_all()
            http.server_close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def agent(self) -> Agent:
        """The newest one."""
        return list(self.agents.values())[-1]

    @property
    def check_ins(self) -> list[CheckIn]:
        """Of the newest agent."""
        return self.agent.check_ins if self.agents else []

    def notify(self) -> int:
        """Tell all connected agents to look; the round."""
        with self.changed:
            self.round += 1
            self.changed.notify_all()
        return self.round

    def wait_for(self, wanted: Callable[[], object], *, seconds: float = WAIT_S) -> None:
        """Until `wanted` holds."""
        deadline = time.monotonic() + seconds
        with self.changed:
            while not wanted():
                left = deadline - time.monotonic()
                assert left > 0, f"the server waited {seconds} s in vain; asked: {self.requests}"
                self.changed.wait(min(left, 0.2))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, place: tuple[str, int], handler: type, tls: ssl.SSLContext | None) -> None:
        super().__init__(place, handler)
        self._open: set[Any] = set()
        self.over = threading.Event()
        if tls:
            self.socket = tls.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )

    def process_request(self, request: Any, address: Any) -> None:
        self._open.add(request)
        super().process_request(request, address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections end as they like."""

    def cut(self) -> None:
        self.over.set()
        for item in list(self._open):
            self.shutdown_request(item)


class _Handler(BaseHTTPRequestHandler):
    owner: SecurityServer
    protocol_version = "HTTP/1.1"
    timeout = 30

    def log_message(self, *_: object) -> None:
        """Quietly."""

    @property
    def bearer(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def do_GET(self) -> None:
        self._note()
        if self.path in self.owner.answers:
            self._send(*self.owner.answers[self.path])
        elif self.path == AUTHORITY_PATH:
            self._send(200, msgspec.json.encode(Authority(certificate=self.owner.authority)))
        elif self.path == NOTIFICATIONS_PATH:
            self._notifications()
        elif self.path.startswith(f"{FEED_PATH}/"):
            self._file(self.owner.feed / self.path.removeprefix(f"{FEED_PATH}/"))
        else:
            self._refuse(404, "not_found", "there is nothing here")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._note()
        roads = {
            ENROL_PATH: self._enrol,
            CHECK_IN_PATH: self._check_in,
            REPORTS_PATH: self._reports,
            CREDENTIAL_PATH: self._credential,
        }
        if self.path in self.owner.answers:
            self._send(*self.owner.answers[self.path])
            return
        with self.owner.changed:
            roads[self.path](body)
            self.owner.changed.notify_all()

    def _note(self) -> None:
        with self.owner.changed:
            self.owner.requests.append((self.command, self.path, self.bearer))
            self.owner.changed.notify_all()

    def _file(self, path: Path) -> None:
        if path.is_file():
            self._send(200, path.read_bytes(), kind="application/octet-stream")
        else:
            self._refuse(404, "not_found", "there is no such file")

    def _send(self, status: int, data: bytes, *, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: int, code: str, sentence: str) -> None:
        said = {"code": code, "sentence": sentence, "request_id": "r1"}
        self._send(status, json.dumps(said).encode())

    def _agent(self) -> Agent | None:
        """Whose credential it is; the first use of a new one makes it the only one."""
        for agent in self.owner.agents.values():
            if agent.revoked or self.bearer not in {agent.credential, agent.next}:
                continue
            if self.bearer == agent.next:
                agent.credential, agent.next = agent.next, None
            return agent
        self._refuse(401, "token_refused", "this credential isn't taken")
        return None

    def _enrol(self, body: bytes) -> None:
        request = msgspec.json.decode(body, type=EnrolRequest)
        if self.bearer not in self.owner.tokens:
            self._refuse(401, "token_refused", "this token isn't taken")
            return
        agent = Agent(secrets.token_hex(16), _credential())
        for older in self.owner.agents.values():
            older.revoked = True
        self.owner.agents[agent.id] = agent
        assert request.facts.host_id
        given = Enrolled(
            agent_id=agent.id,
            credential=agent.credential,
            group="default",
            check_in_s=self.owner.check_in_s,
        )
        self._send(201, msgspec.json.encode(given))

    def _check_in(self, body: bytes) -> None:
        said = msgspec.json.decode(body, type=CheckIn)
        if not (agent := self._agent()):
            return
        agent.check_ins.append(said)
        agent.answered = max(agent.answered, said.heard_round)
        reply = CheckInReply(
            round=self.owner.round,
            look=agent.answered < self.owner.round,
            check_in_s=self.owner.check_in_s,
            rotate=self.owner.rotate,
        )
        self._send(200, msgspec.json.encode(reply))

    def _reports(self, body: bytes) -> None:
        assert len(body) <= messages.BODY_BYTES_MAX
        said = msgspec.json.decode(body, type=Reports)
        if not self._agent():
            return
        if self.owner.refuse_reports & {item.attempt for item in said.reports}:
            self._refuse(400, "malformed", "one of these can't be read")
            return
        self.owner.batches.append(said)
        for item in said.reports:
            self.owner.reports.setdefault(item.attempt, item)
        taken = ReportsTaken(taken=tuple(item.attempt for item in said.reports))
        self._send(200, msgspec.json.encode(taken))

    def _credential(self, _body: bytes) -> None:
        if agent := self._agent():
            agent.next = _credential()
            self.owner.rotate = False
            self._send(200, msgspec.json.encode(NewCredential(credential=agent.next)))

    def _notifications(self) -> None:
        owner = self.owner
        with owner.changed:
            agent = self._agent()
            if agent is None:
                return
            owner.last_event_ids.append(self.headers.get("Last-Event-ID"))
            owner.listening += 1
            owner.changed.notify_all()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        assert isinstance(self.server, _Server)
        try:
            self._tell(agent, self.server.over)
        finally:
            with owner.changed:
                owner.listening -= 1
                owner.changed.notify_all()

    def _tell(self, agent: Agent, over: threading.Event) -> None:
        owner, told = self.owner, 0
        heard = time.monotonic()
        while not over.is_set() and not agent.revoked:
            with owner.changed:
                owner.changed.wait(min(owner.heartbeat_s, 0.2))
                newest = owner.round
            line = b""
            if newest > max(told, agent.answered):
                told = newest
                data = json.dumps({"round": newest})
                line = f"id: {newest}\nevent: look\ndata: {data}\n\n".encode()
            elif time.monotonic() - heard >= owner.heartbeat_s:
                line = b":\n\n"
            if line:
                heard = time.monotonic()
                self.wfile.write(line)


def _credential() -> str:
    return f"hfagt_{secrets.token_hex(16)}_{secrets.token_urlsafe(32)}"
