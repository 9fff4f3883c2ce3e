"""The states of an attempt, and what the boot record becomes. The only such place.

Two tables of facts:
 * TRANSITIONS lists every state an attempt may pass to; anything else is refused.
 * Each function below turns one boot record into the next. The caller stores
   the result with one durable write before it acts on it, so an interruption
   finds either the old truth or the new one, and `recover` finishes it.

Pure: no clocks, no paths.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from agent.errors import LifecycleError
from agent.guardian import lesser
from agent.slots.record import Attempt, BootRecord, Held, Phase, SlotContent, SlotName

FAULTS_ALLOWED = 2  # of the guardian in one trial; the next one is no chance any more


class State(StrEnum):
    """What the agent is doing, as administrators see it."""

    IDLE = "idle"
    CHECKING = "checking"
    DOWNLOADING = "downloading"
    STAGING = "staging"
    WAITING = "waiting"
    TRIAL = "trial"
    COMMITTED = "committed"
    REVERTING = "reverting"
    REVERTED = "reverted"
    FAILED = "failed"


_RESTING = {State.IDLE, State.COMMITTED, State.REVERTED, State.FAILED}
_FROM_REST = frozenset({State.IDLE, State.CHECKING, State.REVERTING, State.TRIAL})

TRANSITIONS: dict[State, frozenset[State]] = {
    **dict.fromkeys(_RESTING, _FROM_REST),
    State.CHECKING: frozenset({State.IDLE, State.DOWNLOADING, State.STAGING, State.FAILED}),
    State.DOWNLOADING: frozenset({State.IDLE, State.STAGING, State.FAILED}),
    State.STAGING: frozenset({State.IDLE, State.DOWNLOADING, State.WAITING, State.FAILED}),
    State.WAITING: frozenset({State.IDLE, State.TRIAL, State.FAILED}),
    State.TRIAL: frozenset({State.COMMITTED, State.REVERTING}),
    State.REVERTING: frozenset({State.REVERTED, State.COMMITTED, State.IDLE}),
}


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The published state: why, since when (Unix seconds) and how far.

    done and total are bytes while downloading, healthy seconds during a trial.
    """

    state: State
    reason: str
    sentence: str
    since: float
    release: str | None = None
    done: float = 0
    total: float = 0


def advance(
    status: Status, to: State, *, reason: str, sentence: str, now: float, release: str | None
) -> Status:
    """The status after passing to `to`; the time starts anew when the state changes.

    Raises LifecycleError: the table doesn't list it.
    """
    if to is not status.state and to not in TRANSITIONS[status.state]:
        raise LifecycleError(f"{status.state} doesn't lead to {to} ({reason}: {sentence})")
    return Status(
        state=to,
        reason=reason,
        sentence=sentence,
        since=status.since if to is status.state else now,
        release=release,
    )


def with_progress(status: Status, *, done: float, total: float) -> Status:
    """The same state, further on."""
    return msgspec.structs.replace(status, done=done, total=total)


def is_resting(state: State) -> bool:
    """Whether nothing is in progress, so that a check may begin."""
    return state in _RESTING


def resumed(record: BootRecord, *, now: float) -> Status:
    """The status a guardian starts with, from the record alone."""
    if record.phase in {Phase.TRIAL, Phase.KEEPING} and record.attempt:
        return Status(
            state=State.TRIAL,
            reason="resumed",
            sentence=f"the trial of {record.attempt.release} goes on",
            since=record.attempt.flipped_at,
            release=record.attempt.release,
        )
    if record.phase is Phase.REVERTING and record.attempt:
        return Status(
            state=State.REVERTING,
            reason=record.attempt.reason,
            sentence=record.attempt.sentence,
            since=now,
            release=record.attempt.release,
        )
    return Status(state=State.IDLE, reason="started", sentence="the agent has started", since=now)


# The boot record's own transitions.


def emptied(record: BootRecord, slot: SlotName) -> BootRecord:
    """`slot` is about to be written: it holds nothing until it is sealed again.

    Raises LifecycleError: the slot is active, or is the way back of a trial.
    """
    if record.phase is not Phase.COMMITTED or slot == record.active:
        raise LifecycleError(f"slot {slot} can't be emptied in phase {record.phase}")
    return msgspec.structs.replace(
        record, slots={name: held for name, held in record.slots.items() if name != slot}
    )


def sealed(record: BootRecord, slot: SlotName, content: SlotContent) -> BootRecord:
    """`slot` holds `content`, complete and sealed, and is not active yet."""
    if record.phase is not Phase.COMMITTED or slot == record.active:
        raise LifecycleError(f"slot {slot} can't be sealed in phase {record.phase}")
    return msgspec.structs.replace(record, slots={**record.slots, slot: content})


def flipped(record: BootRecord, attempt: Attempt, *, tries: int, boot_id: str) -> BootRecord:
    """The spare slot becomes active, on trial.

    tries is how many starts the release gets; this flip is the first.
    Raises LifecycleError: a trial is running, or the spare slot isn't sealed.
    """
    if record.phase is not Phase.COMMITTED:
        raise LifecycleError(f"no flip in phase {record.phase}")
    if record.spare not in record.slots:
        raise LifecycleError(f"slot {record.spare} is not sealed")
    return msgspec.structs.replace(
        record,
        phase=Phase.TRIAL,
        active=record.spare,
        tries_left=max(tries - 1, 0),
        healthy_s=0.0,
        boot_id=boot_id,
        clean_stop=False,
        faults=0,
        attempt=attempt,
    )


def observed(record: BootRecord, *, healthy_s: float) -> BootRecord:
    """The trial has been healthy for `healthy_s` seconds in all."""
    return msgspec.structs.replace(record, healthy_s=max(healthy_s, record.healthy_s))


def stopped_cleanly(record: BootRecord) -> BootRecord:
    """An orderly stop during a trial: the next boot doesn't use up a try."""
    return msgspec.structs.replace(record, clean_stop=record.phase is Phase.TRIAL)


def reverting(
    record: BootRecord,
    *,
    reason: str,
    sentence: str,
    quarantine: bool,
    evidence: str | None = None,
) -> BootRecord:
    """The trial failed: the prior slot is active again, the rest is due.

    After a first install there is no prior slot: then nothing is active, as before.
    Nothing is quarantined that the attempt said not to (a repair). What was
    known against the prior slot stays known, and a repair that failed isn't
    begun again until the slot was found whole.
    """
    if record.phase is not Phase.TRIAL or record.attempt is None:
        raise LifecycleError(f"no revert in phase {record.phase}")
    attempt = msgspec.structs.replace(
        record.attempt,
        reason=reason,
        sentence=sentence,
        quarantine=quarantine and record.attempt.quarantine,
        evidence=evidence,
    )
    held = record.held
    if held is None and attempt.cause == "repair":
        held = Held(reason="repair_failed", sentence=sentence, since=attempt.flipped_at)
    return msgspec.structs.replace(
        record,
        phase=Phase.REVERTING,
        active=record.spare
        if record.attempt.from_release and record.spare in record.slots
        else None,
        attempt=attempt,
        held=held,
    )


def holding(record: BootRecord, *, held: Held, evidence: str | None = None) -> BootRecord:
    """The trial failed, and the slot to go back to is worse: this one is kept."""
    kept = keeping(record, reason=held.reason, sentence=held.sentence)
    attempt = kept.attempt and msgspec.structs.replace(kept.attempt, held=True, evidence=evidence)
    return msgspec.structs.replace(kept, attempt=attempt, held=held)


def turned_back(record: BootRecord, *, held: Held) -> BootRecord:
    """A revert would end on a slot that is worse: what it leaves is kept after all.

    Raises LifecycleError: no revert is due, or it leaves no slot that the record knows.
    """
    if record.phase is not Phase.REVERTING or record.attempt is None:
        raise LifecycleError(f"no revert to turn back in phase {record.phase}")
    if record.active is None or record.spare not in record.slots:
        raise LifecycleError(f"slot {record.spare} holds no release to keep")
    attempt = msgspec.structs.replace(
        record.attempt, reason=held.reason, sentence=held.sentence, held=True
    )
    return msgspec.structs.replace(
        record, phase=Phase.KEEPING, active=record.spare, attempt=attempt, held=held
    )


def with_held(record: BootRecord, held: Held | None) -> BootRecord:
    """What is known against the active slot, None once it was found or made whole."""
    return msgspec.structs.replace(record, held=held)


def returning(record: BootRecord, attempt: Attempt, *, held: Held | None = None) -> BootRecord:
    """Leave a committed release for the sealed spare slot: damage, or an administrator.

    Raises LifecycleError: a trial is running, or there is nothing to return to.
    """
    if record.phase is not Phase.COMMITTED:
        raise LifecycleError(f"no return in phase {record.phase}")
    if record.spare not in record.slots:
        raise LifecycleError(f"slot {record.spare} holds no release to return to")
    return msgspec.structs.replace(
        record, phase=Phase.REVERTING, active=record.spare, attempt=attempt, held=held
    )


def keeping(record: BootRecord, *, reason: str, sentence: str) -> BootRecord:
    """The trial passed: what is active is trusted, the rest is due."""
    if record.phase is not Phase.TRIAL or record.attempt is None:
        raise LifecycleError(f"no commit in phase {record.phase}")
    attempt = msgspec.structs.replace(record.attempt, reason=reason, sentence=sentence)
    return msgspec.structs.replace(record, phase=Phase.KEEPING, attempt=attempt)


def given_up(record: BootRecord) -> tuple[SlotName, ...]:
    """The slots that are no way back once `record` is settled, and lose their seals before.

    What a revert leaves, and what was held for a trial that it failed: once another
    release is kept, nothing would tell it from one that had been good. Files that were
    altered tell of themselves.
    """
    others = tuple(name for name in record.slots if name != record.active)
    if record.phase is Phase.REVERTING:
        return others
    has_failed = record.held is not None and record.held.reason not in lesser.FILES
    return others if has_failed and _is_kept_for_good(record) else ()


def _is_kept_for_good(record: BootRecord) -> bool:
    return record.phase is Phase.KEEPING and not (record.attempt and record.attempt.held)


def settled(record: BootRecord) -> BootRecord:
    """Everything that was due after a keep or a revert is done; see given_up."""
    if record.phase not in {Phase.KEEPING, Phase.REVERTING}:
        raise LifecycleError(f"nothing to settle in phase {record.phase}")
    gone = given_up(record)
    return msgspec.structs.replace(
        record,
        phase=Phase.COMMITTED,
        slots={name: held for name, held in record.slots.items() if name not in gone},
        attempt=None,
        tries_left=0,
        healthy_s=0.0,
        clean_stop=False,
        faults=0,
        held=None if _is_kept_for_good(record) else record.held,
    )


def faulted(record: BootRecord) -> BootRecord:
    """The guardian has failed at something it doesn't know how to handle.

    Once or twice may have any cause, so the next guardian takes the trial up
    again. A release with which it fails each time can't be watched, and what
    can't be watched isn't kept: it is reverted and quarantined.
    """
    if record.phase is not Phase.TRIAL:
        return record
    counted = msgspec.structs.replace(record, faults=record.faults + 1, clean_stop=False)
    if counted.faults <= FAULTS_ALLOWED:
        return counted
    release = record.attempt.release if record.attempt else "the release"
    return reverting(
        counted,
        reason="guardian_faults",
        sentence=f"the guardian failed {counted.faults} times while it watched {release}, "
        f"{FAULTS_ALLOWED} times are allowed",
        quarantine=True,
    )


def booted(record: BootRecord, *, boot_id: str) -> BootRecord:
    """The machine has booted: a trial's start is counted before the engine starts.

    The same boot id is the same boot: a guardian that restarts costs no try,
    and takes back its orderly stop. An orderly shutdown costs none either. A
    trial without tries left reverts.
    """
    if record.phase is not Phase.TRIAL:
        return record
    if record.boot_id == boot_id:  # it runs again: a hang from here on is no orderly stop
        return msgspec.structs.replace(record, clean_stop=False)
    if record.clean_stop:
        return msgspec.structs.replace(record, boot_id=boot_id, clean_stop=False)
    if record.tries_left > 0:
        return msgspec.structs.replace(record, boot_id=boot_id, tries_left=record.tries_left - 1)
    release = record.attempt.release if record.attempt else "the release"
    return reverting(
        record,
        reason="tries_used_up",
        sentence=f"the machine went down during the trial of {release} and no try is left",
        quarantine=True,
    )


def rebuilt(
    intact: dict[SlotName, SlotContent],
    *,
    linked: SlotName | None,
    tried: SlotName | None = None,
    unsettled: Attempt | None = None,
) -> BootRecord:
    """A record for a machine whose own was unreadable, from its sealed slots.

    linked is the slot the current link points at; it stays active if it is
    sealed. tried is the slot of an attempt whose end was lost with the record:
    what isn't known to be good is left for the other slot, if that is sealed,
    and `unsettled` is finished as a revert that quarantines nothing.
    """
    if tried in intact and unsettled is not None and len(intact) > 1:
        back: SlotName = "b" if tried == "a" else "a"
        attempt = msgspec.structs.replace(
            unsettled,
            release=intact[tried].release,
            from_release=intact[back].release,
        )
        return BootRecord(phase=Phase.REVERTING, active=back, slots=intact, attempt=attempt)
    active: SlotName | None = linked if linked in intact else next(iter(sorted(intact)), None)
    return BootRecord(active=active, slots=intact)
