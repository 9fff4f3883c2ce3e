"""Processes that do something to a database and are killed in the midst of it.

    python -m tests.server.orders

imports the server once; each line on standard input is an Order, for which a
process is forked. It ends by SIGKILL or with the code that is written, one a
line, to standard output.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from feed.messages import Reports
from server.accounts.credentials import AgentIdentity
from server.fleet import reports
from server.fleet.checkins import CheckIns
from server.settings import Policy
from server.storage import migrating
from server.storage.database import Database
from server.storage.tables import Round
from tests.server import machines

ROOT = Path(__file__).parents[2]


class Order(msgspec.Struct, frozen=True, tag="migrate"):
    """Migrate `url` with the scripts in a folder; die once so many statements have run.

    0: live.
    """

    url: str
    scripts: str
    die_after: int = 0


class Busy(msgspec.Struct, frozen=True, tag="busy"):
    """Serve agents that were enrolled, by id and number, until the end.

    What is acknowledged is added to `heard`, a line each. After so many lines
    and a moment more the process dies.
    """

    url: str
    heard: str
    agents: dict[str, int]
    start: int
    die_after: int
    moment_s: float


class Ack(msgspec.Struct, frozen=True):
    """A server's answer: of what kind, to which agent, what it said was number n."""

    kind: str
    agent_id: str
    n: int


class Orders:
    """The test's end."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def run(self, order: Order | Busy) -> int:
        """The exit code; negative: the signal."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@contextlib.contextmanager
def taking() -> Iterator[Orders]:
    """A process that takes orders."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.server.orders"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        yield Orders(process)
        assert process.stdin
        process.stdin.close()


def _die_after(order: Order) -> None:
    seen = 0

    def count(*_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == order.die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "after_cursor_execute", count)


def _migrate(order: Order) -> int:
    migrating.SCRIPTS = Path(order.scripts)
    _die_after(order)
    database = Database(order.url)
    database.migrate()
    database.close()
    return 0


class _Serving:
    """Everything that agents are acknowledged, as the server's web layer does it."""

    def __init__(self, order: Busy) -> None:
        self.order = order
        self.database = Database(order.url)
        self.check_ins = CheckIns(self.database, Policy)
        self.file = os.open(order.heard, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.acknowledged = 0

    def heard(self, kind: str, agent_id: str, n: int) -> None:
        os.write(self.file, msgspec.json.encode(Ack(kind, agent_id, n)) + b"\n")
        self.acknowledged += 1
        if self.acknowledged == self.order.die_after:
            death = (os.getpid(), signal.SIGKILL)
            threading.Timer(self.order.moment_s, os.kill, death).start()

    async def checks_in(self, agent_id: str, number: int) -> None:
        who = AgentIdentity(agent_id, "agent", "default")
        for n in itertools.count(self.order.start):
            said = machines.check_in(number, state=str(n), components={"virus-pattern": str(n)})
            await self.check_ins.take(who, said, now=machines.NOW + n)
            self.heard("check-in", agent_id, n)

    async def reports(self, agent_id: str) -> None:
        for n in itertools.count(self.order.start):
            told = Reports(reports=(machines.report(f"a{n}", "reverted"),))
            await self.database.write(
                lambda session, told=told: reports.take(session, agent_id, told, now=machines.NOW)  # type: ignore[misc]
            )
            self.heard("report", agent_id, n)

    async def notifies(self) -> None:
        while True:
            self.heard("round", "", await self.database.write(self._round))

    @staticmethod
    def _round(session: Session) -> int:
        made = Round(created_at=machines.NOW, window_s=1.0, cause="release", by="")
        session.add(made)
        session.flush()
        return made.id

    async def serve(self) -> None:
        checking = [self.checks_in(*agent) for agent in self.order.agents.items()]
        reporting = [self.reports(agent_id) for agent_id in self.order.agents]
        await asyncio.gather(*checking, *reporting, self.notifies())


def _obey(order: Order | Busy) -> int:
    if isinstance(order, Order):
        return _migrate(order)
    asyncio.run(_Serving(order).serve())
    return 0


def _forked(order: Order | Busy) -> int:
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 1
    try:
        code = _obey(order)
    except BaseException:  # noqa: BLE001 - as the interpreter's outermost frame does
        traceback.print_exc()
    os._exit(code)


if __name__ == "__main__":
    for line in sys.stdin.buffer:
        print(_forked(msgspec.json.decode(line, type=Order | Busy)), flush=True)
