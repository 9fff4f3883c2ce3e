"""One line for each attempt that ended: what, when, why, with which figures.

JSON lines, appended durably. A line torn by a power cut is skipped when read.
The same attempt is written once, however often its end is finished anew.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from pathlib import Path

import msgspec

from feed import durable

LINES_KEPT = 500
TAIL_BYTES = 1 << 20
ROTATE_BYTES = 4 << 20


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an attempt ended: committed, reverted, failed, or held (it failed, the other is worse).

    Times are Unix seconds; seconds_to_revert is from the flip to the prior
    slot being active again; bytes are what travelled and what fulls would be.
    """

    attempt: str
    outcome: str
    release: str
    from_release: str | None
    trigger: str
    reason: str
    sentence: str
    ended: float
    flipped: float | None = None
    cause: str = "update"
    wire_bytes: int | None = None
    full_bytes: int | None = None
    seconds_in_trial: float | None = None
    evidence: str | None = None


def append(path: Path, outcome: Outcome) -> None:
    """Add `outcome` unless its attempt already has a line."""
    kept = tail(path, LINES_KEPT)
    if any(item.attempt == outcome.attempt for item in kept):
        return
    line = msgspec.json.encode(outcome) + b"\n"
    if _size(path) > ROTATE_BYTES:
        lines = [msgspec.json.encode(item) for item in kept]
        durable.replace(path, b"\n".join([*lines, line]), mode=0o644)
        return
    # A torn last line has no newline: start on a new one.
    durable.append(path, b"\n" + line if _is_torn(path) else line, mode=0o644)


def tail(path: Path, count: int) -> list[Outcome]:
    """The last `count` outcomes, oldest first."""
    found: deque[Outcome] = deque(maxlen=count)
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(max(_size(path) - TAIL_BYTES, 0))
        for line in file:
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                found.append(msgspec.json.decode(line, type=Outcome))
    return list(found)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _is_torn(path: Path) -> bool:
    if not _size(path):
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
