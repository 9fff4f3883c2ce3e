"""What the boot record is made of at a start, and what the machine is made to agree with.

The guardian and the boot guard both begin here: the record is read or rebuilt,
the boot is counted, the link is repaired. Nothing here needs network, a child
process or an event loop. Every step may be repeated.
"""

from __future__ import annotations

import secrets

import structlog

from agent import host
from agent.errors import RecordError
from agent.guardian import bad_slots, lifecycle, notes, settings
from agent.guardian.ledger import Ledger
from agent.slots import record as records
from agent.slots.record import Attempt, BootRecord, Phase, SlotContent, SlotName

_log = structlog.get_logger()


def count_boot(ledger: Ledger) -> bool:
    """Make the record what this boot makes of it, durably, and the link agree with it.

    A full disk stops neither the way back nor the watch; at worst this boot
    isn't counted. Returns whether nobody had looked at the record in this boot.
    Raises OSError: the state folder can't be read or written.
    """
    record = _load(ledger)
    counted = _leave_lost_slot(ledger, lifecycle.booted(record, boot_id=ledger.boot_id))
    counted = bad_slots.way_back(ledger, counted)
    if counted != record:
        _store_count(ledger, counted)
    ledger.adopt(counted)
    try:
        ledger.switch_link()
    except OSError as error:
        if counted.phase is Phase.COMMITTED:
            raise
        _log.error("link_not_switched", problem=str(error))  # tried again by what is due
    return record.boot_id != ledger.boot_id


def count_fault(ledger: Ledger) -> None:
    """The guardian has failed or hung: one fault more, durably; the last one goes back.

    A full disk may be the release's doing: it doesn't keep the fault from counting.
    Raises OSError: the state folder can't be written.
    """
    counted = bad_slots.way_back(ledger, lifecycle.faulted(ledger.record))
    if counted.phase is not Phase.COMMITTED:
        _store(ledger, counted)
        ledger.adopt(counted)
        ledger.switch_link()


def has_stopped(ledger: Ledger) -> bool:
    """Whether the guardian that ran last had noted an orderly stop. Raises OSError."""
    try:
        return records.load(ledger.layout.boot_record).clean_stop
    except RecordError:
        return False


def apply_settings(ledger: Ledger) -> None:
    """Put the active slot's settings in place, undoably.

    Raises OSError, or ActivationError: a payload or target can't be used.
    """
    record, seal = ledger.record, ledger.active_seal
    if record.attempt is None or record.active is None or seal is None:
        return
    settings.apply(
        ledger.layout,
        ledger.layout.slot(record.active),
        seal,
        ledger.config.settings,
        owner=record.slots[record.active].seal,
    )


def revert_settings(ledger: Ledger) -> None:
    """Put back what the slot that is left had changed. Raises OSError or ValueError.

    Where the same release is active (a repair was left), its settings stay.
    """
    active = ledger.record.content
    for left in left_slots(ledger.record).values():
        if active is None or left.seal != active.seal:
            settings.revert(ledger.layout, owner=left.seal)


def left_slots(record: BootRecord) -> dict[SlotName, SlotContent]:
    """What a revert leaves: the slot that isn't active, whichever that was."""
    return {name: held for name, held in record.slots.items() if name != record.active}


def difference(new: dict[str, str], old: dict[str, str]) -> dict[str, str]:
    """The components of `new` whose content digest isn't that of `old`."""
    return {name: digest for name, digest in new.items() if old.get(name) != digest}


def return_attempt(
    ledger: Ledger,
    record: BootRecord,
    reason: str,
    sentence: str,
    trigger: str,
    *,
    quarantined: bool,
) -> Attempt:
    """What is to be remembered of leaving a committed release for the spare slot's."""
    left, prior = ledger.active_seal, ledger.seal_of(record.spare)
    return Attempt(
        id=secrets.token_hex(8),
        release=record.content.release if record.content else "",
        from_release=record.slots[record.spare].release,
        changed=difference(left.contents, prior.contents) if left and prior else {},
        trigger=trigger,
        flipped_at=0.0,
        cause="rollback" if quarantined else "repair",
        reason=reason,
        sentence=sentence,
        quarantine=quarantined,
    )


def _store_count(ledger: Ledger, counted: BootRecord) -> None:
    try:
        _store(ledger, counted)
    except OSError as error:
        _log.error("boot_not_counted", phase=counted.phase, problem=str(error))
        return
    _log.info("boot_counted", phase=counted.phase, tries_left=counted.tries_left)


def _store(ledger: Ledger, record: BootRecord) -> None:
    """Raises OSError: there is no room for it, even without what can be downloaded again."""
    path = ledger.layout.boot_record
    try:
        records.store(path, record)
    except OSError:
        ledger.make_room()
        records.store(path, record)


def _leave_lost_slot(ledger: Ledger, record: BootRecord) -> BootRecord:
    """An active slot without its seal is no release: the other one, if it has one."""
    sealed = ledger.sealed_slots()
    if record.active is None or record.active in sealed or record.spare not in sealed:
        return record
    sentence = f"slot {record.active} has lost its seal"
    _log.error("active_slot_lost", slot=record.active, instead=record.spare)
    if record.phase is Phase.TRIAL:
        return lifecycle.reverting(
            record, reason="slot_damaged", sentence=sentence, quarantine=False
        )
    if record.phase is Phase.COMMITTED and record.spare in record.slots:
        attempt = return_attempt(
            ledger, record, "slot_damaged", sentence, "start", quarantined=False
        )
        return lifecycle.returning(record, attempt)
    return record


def _load(ledger: Ledger) -> BootRecord:
    path = ledger.layout.boot_record
    try:
        record = records.load(path)
    except RecordError as error:
        kept = records.set_aside(path)
        record = _rebuild(ledger)
        _log.error("boot_record_rebuilt", problem=str(error), kept=str(kept), active=record.active)
        return record
    if record == BootRecord() and ledger.sealed_slots() and not path.exists():
        record = _rebuild(ledger)
        _log.error("boot_record_missing", path=str(path), active=record.active)
    return record


def _rebuild(ledger: Ledger) -> BootRecord:
    linked = host.link_target(ledger.layout.current)
    intact = ledger.sealed_slots()
    chosen: SlotName | None = "a" if linked == "a" else "b" if linked == "b" else None
    found = notes.peek(ledger.layout.trial_notes)
    record = lifecycle.rebuilt(
        intact,
        linked=chosen,
        tried=found.slot if found else None,
        unsettled=_lost_attempt(found.attempt) if found else None,
    )
    records.store(ledger.layout.boot_record, record)
    return record


def _lost_attempt(attempt: str) -> Attempt:
    """What is left to say of an attempt whose boot record is gone."""
    return Attempt(
        id=attempt,
        release="",
        from_release=None,
        changed={},
        trigger="start",
        flipped_at=0.0,
        cause="repair",
        reason="record_lost",
        sentence="the boot record was lost before the release was known to be good",
        quarantine=False,
    )
