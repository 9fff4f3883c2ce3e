"""What was reverted on this machine, so that it isn't tried again.

An entry is the set of components a failed flip changed, by content digest.
Only together are they known to hurt: a release is refused when it carries all
of them, so a component that worked comes back with the next release that
leaves the others out or replaces them (docs/adr/0006).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import structlog

from feed import durable
from feed.manifest import content_digest
from feed.rollout import QuarantinedSet

PROGRAM_INCOMPATIBLE = "program_incompatible"
ENTRIES_MAX = 256
FILE_BYTES_MAX = 4 << 20

_log = structlog.get_logger()


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One reverted set. Times are Unix seconds; evidence is a file name."""

    id: str
    changed: dict[str, str]
    release: str
    reason: str
    sentence: str
    since: float
    until: float
    attempt: str
    evidence: str | None = None


def entry_id(changed: dict[str, str]) -> str:
    """A short stable name for a set: the start of its content digest."""
    return content_digest(changed)[:12]


def load(path: Path) -> tuple[Entry, ...]:
    """The entries in `path`. An unreadable file is moved aside and logged: protection
    goes on, and the worst that follows is one more trial, which would revert again."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise msgspec.DecodeError(f"over {FILE_BYTES_MAX:,} bytes")
        return msgspec.json.decode(data, type=tuple[Entry, ...])
    except FileNotFoundError:
        return ()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        kept = path.with_name(f"{path.name}.unreadable")
        durable.rename(path, kept)
        _log.error("quarantine_unreadable", path=str(path), kept=str(kept), problem=str(error))
        return ()


def store(path: Path, entries: tuple[Entry, ...]) -> None:
    """Replace the file durably."""
    durable.replace(path, msgspec.json.encode(entries), mode=0o644)


def with_entry(entries: tuple[Entry, ...], entry: Entry) -> tuple[Entry, ...]:
    """`entries` with `entry` added or renewed; the oldest go past the limit."""
    others = tuple(item for item in entries if item.id != entry.id)
    return (*others, entry)[-ENTRIES_MAX:]


def without(entries: tuple[Entry, ...], which: str | None) -> tuple[Entry, ...]:
    """`entries` without the one whose id starts with, or release is, `which`; None: none left."""
    if which is None:
        return ()
    return tuple(item for item in entries if not _is_meant(item, which))


def _is_meant(entry: Entry, which: str) -> bool:
    # An empty name means nothing: "$ID" of an unset variable mustn't clear everything.
    return which != "" and (entry.id.startswith(which) or entry.release == which)


def without_incompatible(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """`entries` without what only another guardian refused: this one may be newer."""
    return tuple(item for item in entries if item.reason != PROGRAM_INCOMPATIBLE)


def in_force(entries: tuple[Entry, ...], *, now: float) -> tuple[QuarantinedSet, ...]:
    """What the rollout decision takes."""
    return tuple(
        QuarantinedSet(changed=item.changed, release=item.release, until=item.until)
        for item in entries
        if item.until > now
    )


def evidence_name(attempt: str) -> str:
    """The file name of an attempt's evidence."""
    return f"{hashlib.sha256(attempt.encode()).hexdigest()[:16]}.json"
