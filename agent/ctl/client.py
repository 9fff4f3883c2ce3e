"""Ask the guardian, or read the boot record when there is no guardian to ask."""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.layout import Layout
    from agent.slots.record import Held

TIMEOUT_S = 10.0
ANSWER_BYTES_MAX = 8 << 20
READ_BYTES = 64 << 10


class AskError(Exception):
    """The guardian refused, or couldn't be asked. `reachable` tells which."""

    def __init__(self, message: str, *, reachable: bool) -> None:
        super().__init__(message)
        self.reachable = reachable


def ask(path: Path, request: dict[str, Any]) -> Any:
    """The guardian's answer to one request on the socket at `path`.

    Raises AskError.
    """
    try:
        with _connected(path) as connection:
            connection.sendall(json.dumps(request).encode() + b"\n")
            line = _read_line(connection)
    except PermissionError as error:
        raise AskError(
            f"{path} may not be used by this account; run the command as the agent's "
            f"owner ({AS_OWNER}) or join its admin_group",
            reachable=True,
        ) from error
    except (OSError, ValueError) as error:
        raise AskError(
            f"the guardian doesn't answer on {path} ({_reason(error)}); start it with "
            f"`{START}` or `agentd --config …`",
            reachable=False,
        ) from error
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise AskError(f"the guardian's answer doesn't parse: {error}", reachable=True) from error
    if not isinstance(answer, dict) or "ok" not in answer:
        raise AskError("the guardian's answer isn't one", reachable=True)
    if not answer["ok"]:
        raise AskError(str(answer.get("error", "refused")), reachable=True)
    return answer.get("result")


def answers(path: Path) -> bool:
    """Whether a guardian can be asked on the socket at `path`."""
    try:
        ask(path, {"do": "version"})
    except AskError as error:
        return error.reachable
    return True


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


if sys.platform == "win32":
    from agent.host.windows_pipes import Connection, connect

    AS_OWNER = "as administrator"
    START = "sc start HoldfastAgent"

    def _connected(path: Path) -> Connection:
        return connect(path, timeout_s=TIMEOUT_S)
else:
    Connection = socket.socket  # without agent.host, which costs agentctl more than its work
    AS_OWNER = "sudo agentctl …"
    START = "systemctl start holdfast-agent"

    def _connected(path: Path) -> Connection:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(TIMEOUT_S)
        try:
            connection.connect(str(path))
        except BaseException:
            connection.close()
            raise
        return connection


def _read_line(connection: Connection) -> bytes:
    found = bytearray()
    while not found.endswith(b"\n"):
        data = connection.recv(READ_BYTES)
        if not data:
            raise OSError("the connection was closed without an answer")
        found += data
        if len(found) > ANSWER_BYTES_MAX:
            raise OSError("the answer is too long")
    return bytes(found)


def status(layout: Layout) -> dict[str, Any]:
    """The status document; from the boot record alone when the guardian is down."""
    try:
        answer: dict[str, Any] = ask(layout.status_socket, {"do": "status"})
    except AskError as error:
        if error.reachable:
            raise
        return without_guardian(layout, str(error))
    return answer


def _held(held: Held | None) -> dict[str, Any] | None:
    """What the record knows against the active slot, as the guardian would tell it."""
    if held is None:
        return None
    return {"reason": held.reason, "sentence": held.sentence, "since": held.since}


def without_guardian(layout: Layout, problem: str) -> dict[str, Any]:
    """What can be said when no guardian runs: the record, and that nobody watches."""
    from agent.errors import RecordError  # noqa: PLC0415 - only when the guardian is down
    from agent.slots import record as records  # noqa: PLC0415

    try:
        record = records.load(layout.boot_record)
    except (RecordError, OSError) as error:
        record, problem = records.BootRecord(), f"{problem}; and {error}"
    held = record.content
    tries = {record.active: record.tries_left} if record.phase is records.Phase.TRIAL else {}
    return {
        "schema": 1,
        "host_id": None,
        "now": time.time(),
        "standing": {"code": 2, "word": "at_risk", "sentence": problem},
        "active_slot": record.active,
        "release": held.release if held else None,
        "state": {"name": "unknown", "reason": "guardian_down", "sentence": problem},
        "phase": str(record.phase),
        "components": [],
        "slots": {
            name: {
                "active": name == record.active,
                "release": record.slots[name].release if name in record.slots else None,
                "digest": record.slots[name].digest if name in record.slots else None,
                "sealed": name in record.slots,
                "on_trial": name in tries,
                "tries_left": tries.get(name),
                "problems": [],
            }
            for name in ("a", "b")
        },
        "trial": None,
        "check": {"last": None, "next": None, "last_error": None},
        "quarantine": [],
        "processes": [],
        "held": _held(record.held),
    }
