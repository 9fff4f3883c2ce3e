"""From "a check is due" to a sealed spare slot: orders the fetcher, runs the stager.

The fetcher proposes and is not believed; the stager's result is what counts.
An attempt that ends here has changed nothing that runs.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import msgspec
import structlog

from agent import host
from agent.channel import (
    Begin,
    Checked,
    CycleFailed,
    HandedOver,
    NeedsFull,
    Progress,
    Result,
    Staged,
    StageJob,
    StageRefused,
    Verified,
    VerifyJob,
)
from agent.errors import LifecycleError
from agent.guardian import lifecycle, quarantine, recovery
from agent.guardian.fetching import FetcherLink
from agent.guardian.history import Outcome
from agent.guardian.ledger import Ledger
from agent.guardian.lifecycle import State
from agent.guardian.staging import StagerLink
from agent.guardian.trial import Trial
from agent.slots.record import Attempt, Phase, SlotContent, SlotName
from feed.rollout import Decision

_FETCHERS_TURN = {State.CHECKING, State.DOWNLOADING}
EVERYTHING = "*"  # in full_only: no component comes by an incremental

_log = structlog.get_logger()


class LastCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What the last check said; times are Unix seconds.

    worked_at is when a source last gave an answer, None: at this very check.
    """

    at: float
    worked_at: float | None = None
    source: str = ""
    decision: str = ""
    sentence: str = ""
    release: str | None = None
    ready_at: float | None = None
    fetch_bytes: int = 0
    full_bytes: int = 0
    wire_bytes: int = 0
    requests: int = 0

    @property
    def last_worked_at(self) -> float:
        """When a source last gave an answer; 0: never."""
        return self.at if self.worked_at is None else self.worked_at


class LastError(msgspec.Struct, frozen=True, kw_only=True):
    """The newest failure of a check or attempt, kept until one works."""

    at: float
    code: str
    sentence: str


class Attempts:
    """One attempt at a time; what comes meanwhile is answered or remembered."""

    def __init__(
        self,
        ledger: Ledger,
        fetcher: FetcherLink,
        stager: StagerLink,
        trial: Trial,
        *,
        unfit: Callable[[SlotName], str] = lambda _: "",
    ) -> None:
        """unfit: why the agent program in a slot can't be used here, "" if it can."""
        self._unfit = unfit
        self._ledger = ledger
        self._fetcher = fetcher
        self._stager = stager
        self._trial = trial
        self._begun: Begin | None = None
        self._handed: HandedOver | None = None
        self._afresh = False
        self._in_vain = 0  # bytes of handovers that led to a full download
        self._emptied: SlotContent | None = None  # what the spare slot held before this attempt
        self._pending: str | None = None
        self.last_check: LastCheck | None = None
        self.last_error: LastError | None = None

    # Beginning.

    def due(self, trigger: str) -> None:
        """A check is due: now, or as soon as the machine is at rest."""
        if not self.begin(trigger, download=True):
            self._pending = trigger

    def begin(self, trigger: str, *, download: bool, afresh: bool = False) -> bool:
        """Start a check; False while something is in progress or there is no fetcher.

        afresh: fetch all that a machine without any release would be given, whole.
        """
        ledger = self._ledger
        if not lifecycle.is_resting(ledger.status.state):
            return False
        order = self._order(trigger, download=download)
        if afresh:
            order = msgspec.structs.replace(
                order,
                host=msgspec.structs.replace(order.host, active_release=None, installed={}),
                full_only=(EVERYTHING,),
                spare={},
            )
        if not self._fetcher.order(order):
            return False
        self._begun = order
        self._handed = None
        self._in_vain = 0
        self._afresh = afresh
        ledger.to(State.CHECKING, reason=trigger, sentence=f"looking for updates ({trigger})")
        return True

    def look(self) -> Begin:
        """An order that only looks, for a program that is on trial."""
        return self._order("trial", download=False)

    def _order(self, trigger: str, *, download: bool) -> Begin:
        return Begin(
            attempt=secrets.token_hex(8),
            trigger=trigger,
            download=download,
            host=self._ledger.describe_host(),
            spare=self._spare(),
        )

    def _spare(self) -> dict[str, str]:
        seal = self._ledger.seal_of(self._ledger.record.spare)
        return seal.contents if seal else {}

    def rest(self) -> None:
        """Nothing is in progress any more: begin what had to wait."""
        pending, self._pending = self._pending, None
        if pending:
            self._ledger.loop.call_in(0, lambda: self.due(pending))

    # What the fetcher says.

    def hear(self, word: Progress | Checked | HandedOver | CycleFailed) -> None:
        """Take a word about the attempt in progress, while it is the fetcher's turn.

        Words about another attempt, and those that come too late, are dropped.
        """
        if self._begun is None or self._ledger.status.state not in _FETCHERS_TURN:
            return
        if not isinstance(word, Progress) and word.attempt != self._begun.attempt:
            return
        if isinstance(word, Progress):
            self._progress(word)
        elif isinstance(word, Checked):
            self._checked(word)
        elif isinstance(word, HandedOver):
            self._stage(word)
        else:
            self._fail(word.code, word.sentence, source=word.source)

    def _progress(self, word: Progress) -> None:
        self._ledger.to(
            State.DOWNLOADING,
            reason="downloading",
            sentence=f"fetching release {word.release}",
            release=word.release,
        )
        self._ledger.show_progress(word.done, word.total)

    def _checked(self, word: Checked) -> None:
        self.last_check = LastCheck(
            at=self._ledger.wall(),
            source=word.source,
            decision=word.decision,
            sentence=word.sentence,
            release=word.release,
            ready_at=word.ready_at,
            fetch_bytes=word.fetch_bytes,
            full_bytes=word.full_bytes,
            wire_bytes=word.wire_bytes,
            requests=word.requests,
        )
        self.last_error = None
        self._back_to_idle(word.decision, word.sentence)

    def lost(self, sentence: str) -> None:
        """The fetcher went away, in the middle of its work or at rest, or can't be started."""
        if self._begun and self._ledger.status.state in _FETCHERS_TURN:
            self._fail("fetcher_lost", sentence)
        else:
            now = self._ledger.wall()
            self.last_error = LastError(at=now, code="fetcher_lost", sentence=sentence)

    def dropped(self, sentence: str) -> None:
        """The fetcher was taken from its work."""
        if self._begun and self._ledger.status.state in _FETCHERS_TURN:
            self._fail("fetcher_lost", sentence)

    # Staging.

    def _stage(self, word: HandedOver) -> None:
        ledger = self._ledger
        if self._begun is None:
            return
        if not self._begun.download:
            self._fail("handover_unasked", "the fetcher handed over what it was only to look at")
            return
        self._handed = word
        slot = ledger.record.spare
        held = ledger.record.slots.get(slot)
        reuse = held is not None and held.digest == word.digest and not self._afresh
        if not reuse:
            self._emptied = held
            try:
                ledger.commit(lifecycle.emptied(ledger.record, slot))
            except OSError as error:
                self._fail("disk_full", f"the boot record can't be written: {error}")
                return
        ledger.to(
            State.STAGING,
            reason="verifying",
            sentence=f"verifying release {word.release} and building it in slot {slot}",
            release=word.release,
        )
        job = StageJob(
            attempt=self._begun.attempt,
            host=self._begun.host,
            active=None if self._afresh else ledger.record.active,
            slot=slot,
            reuse=reuse,
        )
        self._stager.run(job, lambda result: self._staged(job, result))

    def _staged(self, job: StageJob, result: Result | None) -> None:
        if self._begun is None or self._begun.attempt != job.attempt:
            return
        if isinstance(result, Staged):
            self._sealed(result)
        elif isinstance(result, NeedsFull):
            self._go_full(result)
        elif isinstance(result, StageRefused):
            self._refused(result)
        else:
            self._died()

    def _died(self) -> None:
        """A decoder that takes the stager down costs a full download, not the update."""
        sentence = "the stager ended without a result; nothing was switched"
        if self._begun and not self._begun.full_only:
            self._go_full(NeedsFull(components=(EVERYTHING,), sentence=sentence))
        else:
            self._fail("stager_died", sentence)

    def _go_full(self, result: NeedsFull) -> None:
        """The same run again, with whole payloads for what couldn't be rebuilt."""
        if self._begun is None or set(result.components) <= set(self._begun.full_only):
            self._fail("rebuild_failed", result.sentence)
            return
        self._in_vain += self._handed.wire_bytes if self._handed else 0
        _log.warning("going_full", components=list(result.components), problem=result.sentence)
        self._begun = msgspec.structs.replace(
            self._begun,
            full_only=tuple({*self._begun.full_only, *result.components}),
            spare=self._spare(),
            fetched_bytes=self._in_vain,
        )
        self._ledger.to(
            State.DOWNLOADING,
            reason="going_full",
            sentence=f"{result.sentence}; fetching the full payloads in the same run",
        )
        if not self._fetcher.order(self._begun):
            self._fail("fetcher_lost", "there is no fetcher to fetch the full payloads")

    def _refused(self, result: StageRefused) -> None:
        """Unless the plan itself says no, a refusal is a failure that people should see."""
        if result.code in set(Decision):
            self._back_to_idle(result.code, result.sentence)
        elif result.code == "spare_slot_unusable" and self._begun:
            self._ledger.reports.pop(self._ledger.record.spare, None)
            try:
                self._ledger.commit(
                    lifecycle.emptied(self._ledger.record, self._ledger.record.spare)
                )
            except OSError as error:
                self._fail("disk_full", str(error))
                return
            self._go_full(NeedsFull(components=(EVERYTHING,), sentence=result.sentence))
        else:
            self._fail(result.code, result.sentence)

    def _sealed(self, staged: Staged) -> None:
        """The slot is whole: look at the program in it, and mend the active one from it."""
        ledger = self._ledger
        slot, active = ledger.record.spare, ledger.record.active
        try:
            ledger.commit(lifecycle.sealed(ledger.record, slot, staged.content))
            if problem := self._unfit(slot):
                self._refuse_program(staged, problem)
                return
        except (OSError, LifecycleError) as error:
            self._fail("disk_full", f"the boot record can't be written: {error}")
            return
        report = ledger.reports.get(active) if active else None
        if active is None or report is None or report.intact:
            self._flip(staged)
            return
        # Should the trial fail, there must be something to go back to.
        job = VerifyJob(slots={active: ledger.record.slots[active].seal})
        self._stager.run(job, lambda result: self._mended(staged, result))

    def _mended(self, staged: Staged, result: Result | None) -> None:
        for report in result.reports if isinstance(result, Verified) else ():
            self._ledger.reports[report.slot] = report
            _log.info("mended_before_flip", slot=report.slot, repaired=list(report.repaired))
        self._flip(staged)

    def _refuse_program(self, staged: Staged, problem: str) -> None:
        """It was never tried, but would be fetched at every check. Raises OSError."""
        ledger, begun = self._ledger, self._begun
        now = ledger.wall()
        entry = quarantine.Entry(
            id=quarantine.entry_id(staged.changed),
            changed=staged.changed,
            release=staged.release,
            reason=quarantine.PROGRAM_INCOMPATIBLE,
            sentence=problem,
            since=now,
            until=now + ledger.config.quarantine_s,
            attempt=begun.attempt if begun else "",
        )
        ledger.add_to_quarantine(entry)
        ledger.commit(lifecycle.emptied(ledger.record, ledger.record.spare))
        self._fail(quarantine.PROGRAM_INCOMPATIBLE, f"{problem}; nothing was switched")

    def _flip(self, staged: Staged) -> None:
        ledger, begun, handed = self._ledger, self._begun, self._handed
        if begun is None or handed is None:
            return
        cause = self._cause(staged)
        content = ledger.record.content
        attempt = Attempt(
            id=begun.attempt,
            release=staged.release,
            from_release=content.release if content else None,
            changed=self._changed(staged, cause),
            trigger=begun.trigger,
            flipped_at=0.0,
            cause=cause,
            quarantine=cause != "repair",
        )
        self._note_handover(handed)
        self._clear_incoming()
        self._begun = self._emptied = None
        self._trial.begin(
            staged,
            attempt,
            wire_bytes=handed.wire_bytes + self._in_vain,
            full_bytes=handed.full_bytes,
        )

    def _cause(self, staged: Staged) -> str:
        """A repair brings what is active, or whatever there is where both slots are bad."""
        record = self._ledger.record
        active = record.content
        is_same = active is not None and active.digest == staged.content.digest
        is_renamed = is_same and not staged.changed  # a file's name alone is news
        if (is_same and not is_renamed) or (self._afresh and record.held):
            return "repair"
        return "return_to_older" if staged.decision == Decision.RETURN else "update"

    def _changed(self, staged: Staged, cause: str) -> dict[str, str]:
        """What a revert quarantines. What was fetched afresh was staged as if nothing ran."""
        active = self._ledger.active_seal
        if cause == "repair" or not self._afresh or active is None:
            return staged.changed
        return recovery.difference(staged.changed, active.contents)

    def _note_handover(self, handed: HandedOver) -> None:
        self.last_error = None
        self.last_check = LastCheck(
            at=self._ledger.wall(),
            source=handed.source,
            decision=handed.decision,
            sentence=f"release {handed.release} was fetched",
            release=handed.release,
            fetch_bytes=handed.fetch_bytes,
            full_bytes=handed.full_bytes,
            wire_bytes=handed.wire_bytes,
            requests=handed.requests,
        )

    # Ending.

    def _recall_spare(self) -> None:
        """A handover that was refused before its slot was touched costs no way back."""
        ledger, held, self._emptied = self._ledger, self._emptied, None
        slot = ledger.record.spare
        if held is None or ledger.sealed_slots().get(slot) != held:
            return
        try:
            ledger.commit(lifecycle.sealed(ledger.record, slot, held))
        except OSError as error:
            _log.warning("spare_slot_not_recalled", slot=slot, problem=str(error))

    def _back_to_idle(self, reason: str, sentence: str) -> None:
        self._begun = None
        self._recall_spare()
        self._ledger.to(State.IDLE, reason=reason, sentence=sentence)
        self._clear_incoming()
        self.rest()

    def _fail(self, code: str, sentence: str, *, source: str = "") -> None:
        ledger, begun = self._ledger, self._begun
        self._begun = None
        self._recall_spare()
        now = ledger.wall()
        self.last_error = LastError(at=now, code=code, sentence=sentence)
        if source:
            last = self.last_check
            worked_at = last.last_worked_at if last else 0.0
            self.last_check = LastCheck(
                at=now, worked_at=worked_at, source=source, decision=code, sentence=sentence
            )
        reached = ledger.status.state
        ledger.to(State.FAILED, reason=code, sentence=sentence)
        if begun and reached is not State.CHECKING:
            ledger.remember(self._failure(begun, code, sentence, now))
        self._clear_incoming()
        self.rest()

    def _failure(self, begun: Begin, code: str, sentence: str, now: float) -> Outcome:
        handed = self._handed
        return Outcome(
            attempt=begun.attempt,
            outcome="failed",
            release=handed.release if handed else self._ledger.status.release or "",
            from_release=begun.host.active_release,
            trigger=begun.trigger,
            reason=code,
            sentence=sentence,
            ended=now,
            wire_bytes=handed.wire_bytes + self._in_vain if handed else None,
            full_bytes=handed.full_bytes if handed else None,
        )

    def _clear_incoming(self) -> None:
        if not host.empty(self._ledger.layout.incoming):
            _log.warning("incoming_not_emptied", path=str(self._ledger.layout.incoming))


def at_rest(ledger: Ledger) -> bool:
    """Whether no trial, commit or revert is in progress."""
    return ledger.record.phase is Phase.COMMITTED and lifecycle.is_resting(ledger.status.state)
