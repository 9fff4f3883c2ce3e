"""What one check costs the network when nothing is new, beside a plain python-tuf refresh.

A relay between client and server counts what really travels: request and
status lines, headers, bodies; not TCP's own headers.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tuf.ngclient import Updater

from bench import machine
from bench.figures import Figure, Section
from tests.support.endpoint import Endpoint
from tests.support.feedserver import FeedServer, Request

READ_BYTES = 64 << 10


def run(*, quick: bool) -> Section:
    """A check over HTTP after everything is known; then python-tuf in the same state."""
    checks = 2 if quick else 5
    with machine.folder() as place:
        desk = machine.vendor(place)
        with (
            FeedServer(desk.feed) as server,
            Relay(server.port) as relay,
            machine.installed(place / "endpoint", url=relay.url, root=desk.root) as endpoint,
        ):
            endpoint.ctl("check", check=True)
            ours = [_observe(server, relay, lambda: _check(endpoint)) for _ in range(checks)]
            theirs = _plain_tuf(place / "tuf", desk.root, server, relay)
    requests, received = max(len(item[0]) for item in ours), max(item[1] for item in ours)
    statuses = sorted({entry.status for item in ours for entry in item[0]})
    conditional = all("if-none-match" in item[0][0].headers for item in ours)
    told = ", ".join(map(str, statuses))
    tuf_bytes = f"{theirs[1]:,} bytes (python-tuf Updater.refresh)"
    return Section(
        title="A check when nothing is new",
        how=f"`agentctl check` over HTTP on a machine that is current, {checks} times; the "
        "costliest counts. Beside it python-tuf's own `Updater.refresh()` with its own "
        "fetcher and the same metadata cached, through the same relay. Bytes of both "
        "directions, without TCP's headers.",
        figures=(
            Figure(
                "requests",
                f"{requests}, answered {told}" + (", conditional" if conditional else ""),
                f"{len(theirs[0])}, answered {', '.join(str(e.status) for e in theirs[0])}",
                ratio=requests / len(theirs[0]),
                goal="one conditional request, answered 304",
                met=requests == 1 and statuses == [304] and conditional,
            ),
            Figure(
                "bytes on the wire", f"{received:,} bytes", tuf_bytes, ratio=received / theirs[1]
            ),
        ),
    )


def _observe(
    server: FeedServer, relay: Relay, act: Callable[[], None]
) -> tuple[list[Request], int]:
    """The requests and the bytes that `act` causes."""
    seen, before = len(server.log), relay.bytes
    act()
    relay.wait_until_quiet()
    return server.log[seen:], relay.bytes - before


def _check(endpoint: Endpoint) -> None:
    answer: dict[str, Any] = json.loads(endpoint.ctl("check", "--json", check=True).stdout)
    assert answer["last_error"] is None, answer


def _plain_tuf(
    place: Path, root: bytes, server: FeedServer, relay: Relay
) -> tuple[list[Request], int]:
    """The second refresh of a python-tuf client that has all metadata."""

    def refresh() -> None:
        Updater(str(place), f"{relay.url}metadata/", bootstrap=root).refresh()

    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    refresh()
    return _observe(server, relay, refresh)


class Relay:
    """Passes TCP connections on to a local port and counts what travels."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._lock = threading.Lock()
        self._open = 0
        self._idle = threading.Condition(self._lock)
        self.bytes = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/"

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def wait_until_quiet(self) -> None:
        """Until every connection has ended, or 5 seconds."""
        with self._idle:
            self._idle.wait_for(lambda: self._open == 0, timeout=5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self._open += 1
        server = socket.create_connection(("127.0.0.1", self._target))
        back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
        back.start()
        self._pump(client, server)
        back.join()
        client.close()
        server.close()
        with self._idle:
            self._open -= 1
            self._idle.notify_all()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(READ_BYTES):
                with self._lock:
                    self.bytes += len(data)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
