"""The boot record: the one truth about what this machine runs.

`boot.json` alone says which slot is active, whether it is trusted, how many
starts a trial has left, and what must still be finished after an interruption.
Everything else (the current link, the status) is derived from it.

 * Load, change in memory, one durable write.
 * A record that doesn't parse, or whose checksum is off, is a RecordError. It
   is moved aside and rebuilt from the sealed slots; it never reads as
   "nothing in progress".
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from pathlib import Path
from typing import Literal

import msgspec

from agent.errors import RecordError
from feed import durable

SCHEMA = 1
RECORD_BYTES_MAX = 256 << 10

SlotName = Literal["a", "b"]


class Phase(StrEnum):
    """Where the machine stands between two releases."""

    COMMITTED = "committed"  # nothing in progress; `active` is None on a fresh machine
    TRIAL = "trial"  # `active` is on probation; the other slot is the way back
    REVERTING = "reverting"  # `active` is the prior slot again; the rest of the revert is due
    KEEPING = "keeping"  # `active` passed; the rest of the commit is due


class SlotContent(msgspec.Struct, frozen=True, kw_only=True):
    """Which sealed release a slot holds: id, content digest, digest of its seal."""

    release: str
    digest: str
    seal: str


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """What must outlive the guardian about the update in progress.

    changed is {component: content digest} of what the flip changed, the set a
    revert quarantines. from_release is None for a first install. Times are
    Unix seconds, for people; nothing is decided by them.
    """

    id: str
    release: str
    from_release: str | None
    changed: dict[str, str]
    trigger: str
    flipped_at: float
    cause: str = "update"  # update, return_to_older, rollback, repair
    held: bool = False  # kept although it failed: the other slot is worse
    reason: str = ""  # reason code of the verdict, once there is one
    sentence: str = ""
    quarantine: bool = True  # whether a revert quarantines `changed`
    evidence: str | None = None  # file name below evidence/


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """Both slots are bad and the active one is kept: what is known against it.

    reason is the code of the trial it failed, slot_damaged, or repair_failed.
    since is in Unix seconds. Until a release is committed, nothing is tried on
    the machine's own account but what is newer.
    """

    reason: str
    sentence: str
    since: float


class BootRecord(msgspec.Struct, frozen=True, kw_only=True):
    """See the module. healthy_s counts observed healthy seconds of this trial.

    faults counts how often the guardian itself failed in it.
    """

    schema: int = SCHEMA
    phase: Phase = Phase.COMMITTED
    active: SlotName | None = None
    slots: dict[SlotName, SlotContent] = {}
    tries_left: int = 0
    healthy_s: float = 0.0
    boot_id: str = ""  # of the boot that last counted a try
    clean_stop: bool = False  # the guardian was stopped in order during this trial
    faults: int = 0
    attempt: Attempt | None = None
    held: Held | None = None

    @property
    def content(self) -> SlotContent | None:
        """What the active slot holds."""
        return self.slots.get(self.active) if self.active else None

    @property
    def spare(self) -> SlotName:
        """The slot that isn't active: the way back, or where the next release goes."""
        return "b" if self.active == "a" else "a"


class _Envelope(msgspec.Struct, frozen=True):
    checksum: str
    record: msgspec.Raw


def serialize(record: BootRecord) -> bytes:
    """The file's bytes; the checksum tells a torn or foreign file."""
    raw = msgspec.json.encode(record, order="deterministic")
    return b'{"checksum":"%s",\n"record":%s}\n' % (hashlib.sha256(raw).hexdigest().encode(), raw)


def parse(data: bytes, *, where: str) -> BootRecord:
    """The record in `data`.

    Raises RecordError: not a whole record, or one that contradicts itself.
    """
    if len(data) > RECORD_BYTES_MAX:
        raise RecordError(f"{where}: {len(data):,} bytes, the limit is {RECORD_BYTES_MAX:,}")
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        raw = bytes(envelope.record)
        if hashlib.sha256(raw).hexdigest() != envelope.checksum:
            raise RecordError(f"{where}: the checksum doesn't match; the file is torn or edited")
        record = msgspec.json.decode(raw, type=BootRecord)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"{where}: not a boot record: {error}") from error
    _check(record, where)
    return record


def _check(record: BootRecord, where: str) -> None:
    if record.schema != SCHEMA:
        raise RecordError(f"{where}: schema {record.schema}, this version reads {SCHEMA}")
    if record.active is not None and record.active not in record.slots:
        raise RecordError(f"{where}: slot {record.active} is active and empty")
    in_progress = record.phase is not Phase.COMMITTED
    if in_progress and record.attempt is None:
        raise RecordError(f"{where}: phase {record.phase} without an attempt")
    if record.phase in {Phase.TRIAL, Phase.KEEPING} and record.active is None:
        raise RecordError(f"{where}: phase {record.phase} without an active slot")
    if record.tries_left < 0 or record.healthy_s < 0:
        raise RecordError(f"{where}: negative tries or seconds")


def load(path: Path) -> BootRecord:
    """The record in `path`; a missing file is a fresh machine.

    Raises RecordError, or OSError when the file can't be read at all.
    """
    try:
        with path.open("rb") as file:
            data = file.read(RECORD_BYTES_MAX + 1)
    except FileNotFoundError:
        return BootRecord()
    return parse(data, where=str(path))


def store(path: Path, record: BootRecord) -> None:
    """Make `record` the truth. World-readable: agentctl reads it when the guardian is down.

    Raises OSError: the previous record still holds.
    """
    durable.replace(path, serialize(record), mode=0o644)


def set_aside(path: Path) -> Path:
    """Move an unreadable record out of the way, keeping it for people."""
    kept = path.with_name("boot.json.unreadable")
    durable.rename(path, kept)
    return kept
