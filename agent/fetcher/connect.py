"""python -m agent.fetcher.connect: become the fetcher that the guardian asks for.

What a service of its own runs as the fetcher's user. It connects to the
guardian's socket, hears one line, a program in JSON (`command`, and `environment`
besides its own), and becomes that program with the socket as its standard input
and output. So the guardian decides
which fetcher runs, and the service manager in which sandbox.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from pathlib import Path

from agent import config, host, layout
from agent.errors import AgentError

LINE_BYTES_MAX = 64 << 10
PATIENCE_S = 60.0  # the guardian may be verifying its state folder
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
    try:
        with _connected(door) as connection:
            command, environment = _heard(connection)
            os.dup2(connection.fileno(), 0)
            os.dup2(connection.fileno(), 1)
    except (OSError, ValueError) as error:
        return _complain(f"{door}: {error}", EXIT_ALONE)
    # The guardian's word, as an argument list.
    return os.execve(command[0], command, {**os.environ, **environment})  # noqa: S606


def _connected(door: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(PATIENCE_S)
        connection.connect(str(door))
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
    connection.settimeout(None)
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
