"""python -m agent.fetcher.connect: become the fetchers that the guardian asks for.

What a service of its own runs as the fetcher's user. One process always waits at
the guardian's socket: it hears one line, a program as JSON, and becomes that
program with the socket as its standard input and output; then the next one goes
to wait. So the guardian decides what runs, and the service manager in which sandbox.
One that finds no guardian looks for it again and again, for a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path

from agent import config, host, layout
from agent.errors import AgentError

if sys.platform == "win32":
    raise ImportError("on Windows the fetcher is the guardian's child")

LINE_BYTES_MAX = 64 << 10
PATIENCE_S = 60.0  # the guardian may be verifying its state folder
RETRY_S = 2.0
ALONE_S = 60.0  # then the configuration is read anew: the socket may be another
EXIT_ALONE = 75  # EX_TEMPFAIL: no guardian is there; the service manager tries again
EXIT_CONFIG = 78  # EX_CONFIG


def main(arguments: list[str] | None = None) -> int:
    """Returns only when there is nothing to become: 75 no guardian, 78 no configuration."""
    parser = argparse.ArgumentParser(prog="python -m agent.fetcher.connect")
    parser.add_argument("--config", type=Path, default=None)
    path = parser.parse_args(arguments).config or layout.default_path()
    try:
        door = layout.resolve(config.load(path), path).fetcher_socket
    except AgentError as error:
        return _complain(str(error), EXIT_CONFIG)
    return _serve(door)


def _serve(door: Path) -> int:
    """One after another; the status with which the last one ended, once it is of no use.

    What was run for a guardian ends with this process, and so before there is another.
    """
    if (status := _first(door)) is None:
        _reap()
        while (status := _one(door)) is None:
            _reap()
    return status


def _first(door: Path) -> int | None:
    """`_one`, for as long as there may be a guardian soon."""
    until = time.monotonic() + ALONE_S
    status = _one(door)
    while status == EXIT_ALONE and time.monotonic() < until:
        time.sleep(RETRY_S)
        status = _one(door, silent=True)
    return status


def _one(door: Path, *, silent: bool = False) -> int | None:
    """Wait as a process of its own; None once it was told what to become, else its status."""
    told, tell = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        os.close(told)
        os._exit(_become(door, tell, silent=silent))
    os.close(tell)
    is_taken = bool(os.read(told, 1))
    os.close(told)
    return None if is_taken else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _reap() -> None:
    """Forget those that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _become(door: Path, tell: int, *, silent: bool) -> int:
    """Returns only when there is nothing to become."""
    host.end_with_parent(os.getppid())
    try:
        with _connected(door) as connection:
            command, environment = _heard(connection)
            os.dup2(connection.fileno(), 0)
            os.dup2(connection.fileno(), 1)
        os.write(tell, b"1")
        # The guardian's word, as an argument list.
        os.execve(command[0], command, {**os.environ, **environment})  # noqa: S606
    except (OSError, ValueError) as error:
        return EXIT_ALONE if silent else _complain(f"{door}: {error}", EXIT_ALONE)


def _connected(door: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(PATIENCE_S)
        connection.connect(str(door))
        connection.settimeout(None)  # it may be long until it is wanted
        peer = host.peer_of(connection)
        peer.close()
        if peer.uid not in {0, os.geteuid()}:
            raise OSError(f"is user {peer.uid}'s, expected root's")
    except OSError:
        connection.close()
        raise
    return connection


def _heard(connection: socket.socket) -> tuple[list[str], dict[str, str]]:
    """The program, byte by byte: what follows its line is for whom this becomes."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte or len(line) >= LINE_BYTES_MAX:
            raise ValueError("the guardian hung up")
        line += byte
    said = json.loads(line)
    if not isinstance(said, dict):
        raise ValueError("the guardian said no program")
    command, environment = said.get("command"), said.get("environment", {})
    texts = [*(command or ()), *environment, *environment.values()]
    if not command or not all(isinstance(item, str) for item in texts):
        raise ValueError("the guardian named no program")
    return list(command), dict(environment)


def _complain(problem: str, status: int) -> int:
    print(f"fetcher: {problem}", file=sys.stderr)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
