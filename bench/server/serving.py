"""The server's web layer in a process of its own, for the benches of it.

    python -m bench.server.serving STATE FEED NOTIFY_PER_S

Says its port and an administrator's token, then serves on plain HTTP until it
is told to stop. `process` starts one.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.log import configure
from server.settings import Limits, Policy
from server.storage.database import Database
from server.web.app import build
from server.web.connections import Server, uvicorn_config
from tests.support import webserver

ROOT = Path(__file__).parents[2]
# One address has all agents here, and they come at once.
LIMITS = Limits(agent_requests_per_s=100.0, agent_requests_burst=1000, enrolments_per_s=1e5)


@dataclass(frozen=True)
class Serving:
    """A server that answers."""

    pid: int
    port: int
    token: str


@contextmanager
def process(state: Path, feed: Path, *, notify_per_s: float = 50.0) -> Iterator[Serving]:
    """A server on the database in `state`, which is made if it isn't there."""
    command = [sys.executable, "-m", "bench.server.serving", str(state), str(feed)]
    running = subprocess.Popen([*command, str(notify_per_s)], stdout=subprocess.PIPE, cwd=ROOT)
    assert running.stdout is not None
    try:
        port, token = running.stdout.readline().decode().split()
        yield Serving(running.pid, int(port), token)
    finally:
        running.terminate()
        running.wait(30)
        running.stdout.close()


class _Speaking(Server):
    """Says where it is as soon as it listens."""

    token = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], self.token, flush=True)


def main() -> None:
    state, feed, notify_per_s = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    configure("warning", program="bench")
    database = Database(f"sqlite:///{state / 'server.db'}")
    database.migrate()
    webserver.store_policy(database, Policy(notify_per_s=notify_per_s))
    made = webserver.parts(database, feed, limits=LIMITS)
    config = uvicorn_config(build(made), LIMITS, made.connections, host="127.0.0.1", port=0)
    server = _Speaking(config, closing=made.hub.close)
    server.token = webserver.administrator(database, f"bench {notify_per_s}")
    try:
        server.run()
    except KeyboardInterrupt:
        pass
    finally:
        database.close()


if __name__ == "__main__":
    main()
