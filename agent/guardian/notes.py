"""trial.json: what a resumed trial needs besides the boot record.

Losing it costs the baseline and the figures, never the way back: a trial
without notes is judged with nothing known from before the flip.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import structlog

from agent.guardian.verdict import Baseline, Carried
from agent.slots.record import SlotName
from feed import durable

NOTES_BYTES_MAX = 8 << 20

_log = structlog.get_logger()


class Notes(msgspec.Struct, frozen=True, kw_only=True):
    """Of one attempt: the machine before the flip, what the trial carried so far, its bytes.

    slot is the one on trial: should the boot record be lost, these notes are
    what says that its release was never known to be good. boot_id is of the boot
    in which they were stored.
    """

    attempt: str
    slot: SlotName | None = None
    boot_id: str = ""
    baseline: Baseline = Baseline()
    carried: Carried | None = None
    wire_bytes: int | None = None
    full_bytes: int | None = None


def store(path: Path, notes: Notes) -> None:
    """Durably. Raises OSError: the previous notes still hold."""
    durable.replace(path, msgspec.json.encode(notes), mode=0o644)


def load(path: Path, *, attempt: str) -> Notes:
    """The notes of `attempt`; empty ones when there are none that can be used."""
    found = peek(path)
    if found and found.attempt == attempt:
        return found
    if found:
        _log.warning("trial_notes_lost", problem=f"they are of attempt {found.attempt}")
    return Notes(attempt=attempt)


def peek(path: Path) -> Notes | None:
    """The notes of whichever attempt isn't settled; None when there are none to be used."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(NOTES_BYTES_MAX), type=Notes)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _log.warning("trial_notes_lost", problem=str(error))
        return None
