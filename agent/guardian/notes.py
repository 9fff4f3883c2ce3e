"""trial.json: what a resumed trial needs besides the boot record.

Losing it costs the baseline and the figures, never the way back: a trial
without notes is judged with nothing known from before the flip.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import structlog

from agent.guardian.verdict import Baseline, Carried
from feed import durable

NOTES_BYTES_MAX = 8 << 20

_log = structlog.get_logger()


class Notes(msgspec.Struct, frozen=True, kw_only=True):
    """Of one attempt: the machine before the flip, what the trial carried so far, its bytes."""

    attempt: str
    baseline: Baseline = Baseline()
    carried: Carried | None = None
    wire_bytes: int | None = None
    full_bytes: int | None = None


def store(path: Path, notes: Notes) -> None:
    """Durably. Raises OSError: the previous notes still hold."""
    durable.replace(path, msgspec.json.encode(notes), mode=0o644)


def load(path: Path, *, attempt: str) -> Notes:
    """The notes of `attempt`; empty ones when there are none that can be used."""
    try:
        with path.open("rb") as file:
            notes = msgspec.json.decode(file.read(NOTES_BYTES_MAX), type=Notes)
        if notes.attempt == attempt:
            return notes
        problem = f"they are of attempt {notes.attempt}"
    except FileNotFoundError:
        return Notes(attempt=attempt)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problem = str(error)
    _log.warning("trial_notes_lost", problem=problem)
    return Notes(attempt=attempt)
