"""A feed server for tests: a folder over real HTTP, with faults on demand.

    with FeedServer(folder) as server:
        server.faults["targets/a"] = Fault(cut_after=1000, times=1)
        ... server.url ...
        assert server.log[-1].status == 206

Starlette's StaticFiles answers (Range, ETag, 304); the wrapper around it
spoils answers and keeps a log. A fault is keyed by the path's end and used up
after `times` requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

FOREVER = 1 << 30


@dataclass
class Fault:
    """What goes wrong with an answer; each may be combined with the others.

    status answers that, with `headers`, and nothing else. cut_after closes
    the connection after so many bytes of the body. endless goes on sending
    zeros after the body without a Content-Length. drip_s pauses between
    single bytes. body replaces the file's bytes. flip_at turns one bit there.
    no_range hides Range from the server, no_etag the ETag from the client.
    hang answers nothing until the client goes away.
    """

    times: int = FOREVER
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    endless: bool = False
    drip_s: float | None = None
    body: bytes | None = None
    flip_at: int | None = None
    no_range: bool = False
    no_etag: bool = False
    hang: bool = False


@dataclass
class Request:
    """One line of the log; sent counts the body's bytes handed to the socket."""

    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


class FeedServer:
    """Serves `folder` on 127.0.0.1 until the block is left."""

    def __init__(self, folder: Path, *, host: str = "127.0.0.1") -> None:
        self.folder = folder
        self.host = host
        self.faults: dict[str, Fault] = {}
        self.log: list[Request] = []
        self.port = 0

    @property
    def url(self) -> str:
        """Where the folder is, with a slash at the end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/"

    @property
    def paths(self) -> list[str]:
        """The paths asked for so far, in order, without the leading slash."""
        return [entry.path for entry in self.log]

    def __enter__(self) -> Self:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.bind((self.host, 0))
        self._socket.listen(64)
        self.port = self._socket.getsockname()[1]
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # faults are meant
        files = StaticFiles(directory=self.folder, follow_symlink=True)
        app = _Faulty(Starlette(routes=[Mount("/", files)]), self)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            loop="asyncio",
            timeout_graceful_shutdown=1,
        )
        self._server = _PromptServer(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._socket.close()

    def fault_for(self, path: str) -> Fault | None:
        """The fault that the request for `path` meets; counts it."""
        for end, fault in self.faults.items():
            if path.endswith(end) and fault.times > 0:
                fault.times -= 1
                return fault
        return None


class _PromptServer(uvicorn.Server):
    """One that notices the end at once, not at the next tenth of a second."""

    async def main_loop(self) -> None:
        await self.on_tick(0)  # the default headers
        while not self.should_exit:
            await asyncio.sleep(0.005)


class _Faulty:
    """The ASGI wrapper: logs, and spoils what it is told to."""

    def __init__(self, app: Starlette, server: FeedServer) -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        entry = Request(scope["method"], scope["path"].lstrip("/"), headers)
        self._server.log.append(entry)
        fault = self._server.fault_for(entry.path) or Fault()
        answer = _Answer(fault, entry, send)
        with contextlib.suppress(_CutError):
            await self._spoiled(fault, answer, scope, receive)

    async def _spoiled(self, fault: Fault, answer: _Answer, scope: Any, receive: Any) -> None:
        if fault.hang:
            await _until_disconnect(receive)
        elif fault.status is not None:
            headers = [(name.encode(), value.encode()) for name, value in fault.headers.items()]
            await answer.start(fault.status, headers)
            await answer.end()
        elif fault.body is not None:
            await answer.start(200, [(b"content-length", b"%d" % len(fault.body))])
            await answer.body(fault.body)
            await answer.end()
        else:
            if fault.no_range:
                scope = scope | {"headers": [p for p in scope["headers"] if p[0] != b"range"]}
            await self._app(scope, receive, answer.message)


async def _until_disconnect(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _CutError(Exception):
    """Ends an answer in the middle: uvicorn closes the connection."""


class _Answer:
    """One response on its way out."""

    def __init__(self, fault: Fault, entry: Request, send: Any) -> None:
        self._fault = fault
        self._entry = entry
        self._send = send

    async def message(self, message: Any) -> None:
        """What the static files answer, passed on with the fault applied."""
        if message["type"] == "http.response.start":
            await self.start(message["status"], message["headers"])
            return
        await self.body(message.get("body", b""))
        if not message.get("more_body", False):
            await self.end()

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._entry.status = status
        hidden = {b"etag"} if self._fault.no_etag else set()
        if self._fault.endless:
            hidden.add(b"content-length")
        kept = [pair for pair in headers if pair[0].lower() not in hidden]
        await self._send({"type": "http.response.start", "status": status, "headers": kept})

    async def body(self, data: bytes) -> None:
        at = self._fault.flip_at
        if at is not None and self._entry.sent <= at < self._entry.sent + len(data):
            here = at - self._entry.sent
            data = data[:here] + bytes([data[here] ^ 1]) + data[here + 1 :]
        cut = self._fault.cut_after
        if cut is not None and self._entry.sent + len(data) > cut:
            await self._write(data[: cut - self._entry.sent])
            raise _CutError
        if self._fault.drip_s is None:
            await self._write(data)
            return
        for byte in data:
            await self._write(bytes([byte]))
            await asyncio.sleep(self._fault.drip_s)

    async def end(self) -> None:
        while self._fault.endless:
            await self._write(bytes(1 << 16))
            await asyncio.sleep(0)
            if self._entry.sent > FOREVER >> 2:
                break
        with contextlib.suppress(RuntimeError):
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, data: bytes) -> None:
        self._entry.sent += len(data)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
