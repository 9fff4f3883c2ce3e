"""Processes that do something to a database and are killed in the midst of it.

    python -m tests.server.orders

imports the server once; each line on standard input is an Order, for which a
process is forked. It ends by SIGKILL or with the code that is written, one a
line, to standard output.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Engine, event

from server.storage import migrating
from server.storage.database import Database

ROOT = Path(__file__).parents[2]


class Order(msgspec.Struct, frozen=True):
    """Migrate `url` with the scripts in a folder; die once so many statements have run.

    0: live.
    """

    url: str
    scripts: str
    die_after: int = 0


class Orders:
    """The test's end."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def run(self, order: Order) -> int:
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


def _obey(order: Order) -> int:
    migrating.SCRIPTS = Path(order.scripts)
    _die_after(order)
    database = Database(order.url)
    database.migrate()
    database.close()
    return 0


def _forked(order: Order) -> int:
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
        print(_forked(msgspec.json.decode(line, type=Order)), flush=True)
