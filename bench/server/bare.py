"""The peer of the push bench: a bare ASGI loop on uvicorn, without accounts and limits.

    python -m bench.server.bare

Holds whoever asks for notifications, and tells all of them from one loop when
it is asked to. It answers what the bench asks of the server.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from bench.server.serving import ROOT, Serving
from feed.messages import NOTIFICATIONS_PATH
from server.web.asgi import Message, Receive, Scope, Send

BACKLOG = 4096


@contextmanager
def process() -> Iterator[Serving]:
    """One that answers."""
    command = [sys.executable, "-m", "bench.server.bare"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert running.stdout is not None
    try:
        yield Serving(running.pid, int(running.stdout.readline()), token="none")
    finally:
        running.kill()  # it would wait for its streams
        running.wait(30)
        running.stdout.close()


class Bare:
    """See the module."""

    def __init__(self) -> None:
        self._sends: list[Send] = []
        self._told_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == NOTIFICATIONS_PATH:
            await self._listen(receive, send)
        elif scope["method"] == "POST":
            await self._tell()
            await _answer(send, {"window_s": 0.0})
        else:
            await _answer(send, {"rounds": [{"created_at": self._told_at}]})

    async def _listen(self, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(_piece(b"retry: 1000\n\n"))
        self._sends.append(send)
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _tell(self) -> None:
        self._told_at = time.time()
        look = _piece(b'id: 1\nevent: look\ndata: {"round": 1}\n\n')
        for send in self._sends:
            await send(look)


def _piece(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _answer(send: Send, told: object) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})


def main() -> None:
    made = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    print(made.getsockname()[1], flush=True)
    settings = uvicorn.Config(
        Bare(), loop="uvloop", http="httptools", lifespan="off", log_config=None, access_log=False
    )
    uvicorn.Server(settings).run(sockets=[made])


if __name__ == "__main__":
    main()
