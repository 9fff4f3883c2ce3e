"""What is recorded against each slot, and what follows when both are bad.

Reads the boot record, the latest verification and the seals; the comparison itself
is lesser's.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec
import structlog

from agent.guardian import lesser, lifecycle
from agent.guardian.ledger import Ledger
from agent.guardian.lesser import Findings
from agent.slots.record import BootRecord, Held, Phase, SlotName

_log = structlog.get_logger()


def findings(ledger: Ledger, slot: SlotName) -> Findings:
    """What is recorded against a slot: altered files, and a failed trial if it is held."""
    record, report = ledger.record, ledger.reports.get(slot)
    held = record.held.reason if record.held else ""
    is_held = slot == (record.spare if record.phase is Phase.TRIAL else record.active)
    was_sealed = slot in record.slots and (report is None or report.content is not None)
    return Findings(
        sealed=was_sealed and ledger.is_sealed(slot),
        damaged=report.damaged if report else (),
        failed=held if is_held else "",
    )


def to_hold(ledger: Ledger, reason: str, sentence: str) -> Held | None:
    """What to keep the release on trial with, that failed for `reason`; None: go back."""
    record = ledger.record
    if record.active is None or record.attempt is None or record.attempt.from_release is None:
        return None
    prior = findings(ledger, record.spare)
    failed = msgspec.structs.replace(findings(ledger, record.active), failed=reason)
    if not lesser.is_bad(prior) or not lesser.is_less_bad(failed, than=prior):
        return None
    told = f"{sentence}; the slot to go back to is worse: {_told(record.spare, prior)}"
    return Held(reason=reason, sentence=told, since=ledger.wall())


def against_prior(ledger: Ledger, reverting: BootRecord) -> Held | None:
    """What is held against the prior slot when `reverting` makes it active again."""
    slot = ledger.record.spare
    if slot not in ledger.reports:  # nobody has looked at its files yet
        return reverting.held
    prior = findings(ledger, slot)
    if not lesser.is_bad(prior):
        return None
    if ledger.record.held is not None:
        return ledger.record.held
    return Held(reason="slot_damaged", sentence=_told(slot, prior), since=ledger.wall())


def way_back(ledger: Ledger, record: BootRecord) -> BootRecord:
    """What becomes of a revert that `record` begins or has begun: see turned_back."""
    if record.phase is not Phase.REVERTING:
        return record
    kept = turned_back(record, ledger.sealed_slots(), now=ledger.wall())
    if kept.held is not None and kept is not record:
        _log.error("both_slots_bad", held=kept.active, detail=kept.held.sentence)
    return kept


def turned_back(record: BootRecord, sealed: Collection[SlotName], *, now: float) -> BootRecord:
    """`record`, or what holds the slot that its revert leaves. Pure; now is in Unix seconds.

    A slot that isn't sealed is no release, and settling a revert gives up the seal of
    what was left: with both, nothing would be left that anybody has signed.
    """
    attempt, prior, left = record.attempt, record.active, record.spare
    if record.phase is not Phase.REVERTING or attempt is None or prior is None:
        return record
    goes_to = Findings(sealed=prior in sealed)
    leaves = Findings(sealed=left in record.slots and left in sealed, failed=attempt.reason)
    if goes_to.sealed or not lesser.is_less_bad(leaves, than=goes_to):
        return record
    told = f"{attempt.sentence}; the slot to go back to is worse: {_told(prior, goes_to)}"
    return lifecycle.turned_back(record, held=Held(reason=attempt.reason, sentence=told, since=now))


def _told(slot: SlotName, found: Findings) -> str:
    if not found.sealed:
        return f"slot {slot} isn't sealed"
    if found.damaged:
        return f"slot {slot} has altered files in {', '.join(found.damaged)}"
    return f"slot {slot} failed its own trial [{found.failed}]"
