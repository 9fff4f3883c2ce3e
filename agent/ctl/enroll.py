"""agentctl enroll: what is asked of the guardian, and its answer.

A token given as an argument can be read in the list of processes while the
command runs; a file, standard input or a prompt keeps it out of there.
"""

from __future__ import annotations

import argparse
import getpass
import sys
import time
from pathlib import Path
from typing import Any

from agent.ctl import client
from agent.ctl.client import AskError

STANDARD_INPUT = "-"
TOKEN_BYTES_MAX = 4096
POLL_S = 0.2
PATIENCE_S = 200.0  # the guardian answers for a fetcher that hangs before that


class UsageError(Exception):
    """The arguments don't go together, or no token can be had."""


def request(given: argparse.Namespace) -> dict[str, Any]:
    """The request that the arguments mean.

    Raises UsageError.
    """
    action = "forget" if given.forget else "rotate" if given.rotate else "enrol"
    if action != "enrol":
        if given.url or given.token or given.token_file:
            raise UsageError(f"--{action} takes no address and no token")
        return {"do": "enroll", "what": action}
    if not given.url:
        raise UsageError("which server? agentctl enroll URL TOKEN")
    if given.token and given.token_file:
        raise UsageError("the token is given twice: once is enough")
    return {"do": "enroll", "what": action, "url": given.url, "token": _token(given)}


def _token(given: argparse.Namespace) -> str:
    if given.token:
        return str(given.token)
    path = given.token_file
    if path and path != STANDARD_INPUT:
        try:
            with Path(path).open("rb") as file:
                return _text(file.read(TOKEN_BYTES_MAX))
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
    if not path and sys.stdin.isatty():
        return getpass.getpass("enrolment token: ").strip()
    return _text(sys.stdin.buffer.read(TOKEN_BYTES_MAX))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace").strip()


def carry_out(control_socket: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Ask, and wait for the fetcher's answer.

    Raises AskError: there is none.
    """
    ticket = client.ask(control_socket, asked)["ticket"]
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        answer: dict[str, Any] = client.ask(control_socket, {"do": "enrolment", "count": ticket})
        if answer["done"]:
            return answer
        time.sleep(POLL_S)
    raise AskError(
        f"no answer after {PATIENCE_S:g} s; agentctl status shows what became of it",
        reachable=True,
    )
