"""What is recorded against each slot, and what follows when both are bad.

Reads the boot record and the latest verification; the comparison itself is
lesser's.
"""

from __future__ import annotations

import msgspec

from agent.guardian import lesser
from agent.guardian.ledger import Ledger
from agent.guardian.lesser import Findings
from agent.slots.record import BootRecord, Held, Phase, SlotName


def findings(ledger: Ledger, slot: SlotName) -> Findings:
    """What is recorded against a slot: altered files, and a failed trial if it is held."""
    record, report = ledger.record, ledger.reports.get(slot)
    held = record.held.reason if record.held else ""
    is_held = slot == (record.spare if record.phase is Phase.TRIAL else record.active)
    return Findings(
        sealed=slot in record.slots and (report is None or report.content is not None),
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


def _told(slot: SlotName, found: Findings) -> str:
    if not found.sealed:
        return f"slot {slot} isn't sealed"
    if found.damaged:
        return f"slot {slot} has altered files in {', '.join(found.damaged)}"
    return f"slot {slot} failed its own trial [{found.failed}]"
