"""The guardian: recovers, supervises, serves, and hands each event to its room.

What happens at start, in this order and before anything else: the boot record
is read (or rebuilt), a boot is counted, the current link is repaired (all of that
is recovery's), what an interruption left due is finished. Only then the fetcher starts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import structlog

from agent import __version__
from agent.channel import (
    CycleFailed,
    Due,
    EnrolAnswer,
    Reach,
    Reached,
    Result,
    Scheduled,
    ServerNews,
    Verified,
    VerifyJob,
    Word,
)
from agent.errors import ControlError
from agent.guardian import history, lesser, lifecycle, programs, recovery, status
from agent.guardian.attempt import Attempts, LastError, at_rest
from agent.guardian.bad_slots import findings
from agent.guardian.control import Request
from agent.guardian.errands import Errands
from agent.guardian.fetching import FetcherLink
from agent.guardian.health import Prober
from agent.guardian.history import Outcome
from agent.guardian.ledger import Ledger
from agent.guardian.liaison import Liaison
from agent.guardian.programs import OWN, Programs
from agent.guardian.staging import StagerLink
from agent.guardian.starter import Starter
from agent.guardian.trial import Trial
from agent.slots.record import BootRecord, Phase

REACH_INTERVAL_S = 60.0  # each question is a short-lived process
HISTORY_MAX = 500
FETCHERS_LOST_MAX = 3  # in a row without any work done, at rest; then the package's own runs

_log = structlog.get_logger()


class Guardian:
    """Wires the rooms together; one for each state folder."""

    def __init__(self, ledger: Ledger, config_path: Path, *, starter: Starter) -> None:
        """starter starts what runs as the fetcher's user."""
        self._ledger = ledger
        self._started = ledger.wall()
        self._reach_at = 0.0
        self._rebooted = False
        self._verifying = False
        self.prober = Prober(ledger.config.watch)
        self.programs = Programs(ledger)
        self.errands = Errands(
            ledger.loop,
            config_path,
            starter=starter,
            answer_s=ledger.config.program.answer_s,
            look=lambda: self.attempts.look(),  # noqa: PLW0108 - made below
        )
        self.trial = Trial(
            ledger,
            self.prober,
            on_end=self._attempt_ended,
            ask_source=self._ask_source,
            on_switch=self._choose_program,
            program=lambda: self.errands.samples,
        )
        self.fetcher = FetcherLink(
            ledger.loop,
            config_path,
            starter=starter,
            on_word=self._hear,
            on_lost=self._fetcher_lost,
        )
        self.liaison = Liaison(ledger, self.fetcher)
        self.stager = StagerLink(
            ledger.loop, config_path, program=self.programs.current, on_unfit=self._distrust
        )
        self.attempts = Attempts(
            ledger,
            self.fetcher,
            self.stager,
            self.trial,
            unfit=lambda slot: programs.unfit(self.programs.of(slot)),
        )

    # Start and recovery.

    def recover(self, *, rebooted: bool) -> None:
        """Go on from the record that recovery.count_boot has made; rebooted is its answer.

        Safe to repeat; needs no network. Raises OSError: the state folder can't be written.
        """
        ledger = self._ledger
        self._rebooted = rebooted
        ledger.status = lifecycle.resumed(ledger.record, now=ledger.wall())
        shutil.rmtree(ledger.layout.staging, ignore_errors=True)
        if ledger.record.phase is Phase.COMMITTED:
            ledger.drop_leftovers()

    def start(self) -> None:
        """Take up what was in progress, then verify the slots and start the fetcher."""
        phase = self._ledger.record.phase
        if phase is Phase.TRIAL:
            self.trial.resume(rebooted=self._rebooted)
        elif phase is not Phase.COMMITTED:
            self.trial.settle()
        else:
            self.trial.rest()
        self._choose_program()
        self.fetcher.start()
        self._verify_slots("start")

    def stop(self) -> None:
        """Orderly: a trial is paused, children end; the state on disk is whole as always."""
        self.trial.pause()
        self._end_children()

    def fail(self) -> None:
        """Something here is broken: count it, and leave the rest to the next guardian.

        Raises OSError: it can't be counted.
        """
        try:
            self._end_children()  # first: one that hangs here is counted once, as a hang
        finally:
            recovery.count_fault(self._ledger)

    def _end_children(self) -> None:
        self.errands.end()
        self.stager.stop()
        self.fetcher.stop()
        self.prober.close()

    # Verification of what is installed.

    def _verify_slots(self, trigger: str) -> bool:
        record = self._ledger.record
        slots = {name: held.seal for name, held in record.slots.items()}
        if not slots or self.stager.busy:
            return False
        job = VerifyJob(slots=slots)
        seen = record

        def done(result: Result | None) -> None:
            self._verifying = False
            if isinstance(result, Verified):
                self._verified(result, trigger, seen)
            self.attempts.rest()

        self._verifying = True
        self.stager.run(job, done)
        return True

    def _verified(self, result: Verified, trigger: str, seen: BootRecord) -> None:
        ledger = self._ledger
        ledger.reports = {report.slot: report for report in result.reports}
        ledger.adopt(ledger.record)  # seals may have been mended: read them again
        for report in result.reports:
            for path in report.repaired:
                _log.warning("file_repaired", slot=report.slot, path=path)
            if not report.intact:
                _log.error("slot_damaged", slot=report.slot, problems=list(report.problems[:5]))
        if ledger.record.active == seen.active and ledger.record.phase is seen.phase:
            self._answer_damage(trigger)
            self._forget_damaged_spare()
            self._release_the_held()
        self._choose_program()

    def _answer_damage(self, trigger: str) -> None:
        """An active slot that can't be mended: the prior one if it is whole, else the feed."""
        ledger = self._ledger
        active = ledger.record.active
        report = ledger.reports.get(active) if active else None
        if active is None or report is None or report.intact:
            return
        sentence = f"slot {active} was altered on disk: {report.problems[0]}"
        spare = ledger.reports.get(ledger.record.spare)
        if ledger.record.phase is Phase.TRIAL:
            self.trial.revert_now("slot_damaged", sentence, quarantined=False)
            return
        is_better = spare and lesser.is_less_bad(
            findings(ledger, ledger.record.spare), than=findings(ledger, active)
        )
        if is_better and at_rest(ledger):
            try:
                self._return_to_spare("slot_damaged", sentence, trigger, quarantined=False)
            except OSError as error:
                _log.error("return_not_written", problem=str(error))
            else:
                return
        self._repair_due()

    def _repair_due(self) -> None:
        """Fetch what is damaged, unless that was tried and failed."""
        if self._ledger.record.held is None:
            self.attempts.due("repair")

    def _release_the_held(self) -> None:
        """What was held for its files and has been made whole is a slot like any other."""
        record = self._ledger.record
        report = self._ledger.reports.get(record.active) if record.active else None
        if record.phase is not Phase.COMMITTED or record.held is None or report is None:
            return
        if report.intact and record.held.reason in lesser.FILES:
            with contextlib.suppress(OSError):
                self._ledger.commit(lifecycle.with_held(record, None))

    # The agent's own program.

    def _choose_program(self) -> None:
        """Let the fetcher be what is to run now, and ask about a program that is on trial."""
        if self.fetcher.use(self.programs.current()):
            self.attempts.dropped("the fetcher was replaced at its work; it is tried again")
            self.liaison.lost("the fetcher was replaced at its work; try again")
        pair = self.programs.on_trial()
        if pair:
            self.errands.begin(*pair)
        else:
            self.errands.end()

    def _distrust(self, sentence: str) -> None:
        if self._ledger.record.phase is Phase.COMMITTED:
            self.programs.distrust(sentence)
            self._choose_program()

    def _forget_damaged_spare(self) -> None:
        """A spare slot that can't be mended is no way back and holds nothing to reuse."""
        record = self._ledger.record
        report = self._ledger.reports.get(record.spare)
        is_spare = record.phase is Phase.COMMITTED and record.spare in record.slots
        if is_spare and report and not report.intact:
            with contextlib.suppress(OSError):
                self._ledger.commit(lifecycle.emptied(record, record.spare))

    # Events.

    def _hear(self, word: Word) -> None:
        if isinstance(word, Due):
            self.attempts.due(word.trigger)
        elif isinstance(word, Reached):
            self.trial.source_reachable = word.ok
        elif isinstance(word, Scheduled):
            self.attempts.rest()  # a fetcher is up again: what waited for one may begin
            self.liaison.tell_anew()
        elif isinstance(word, EnrolAnswer | ServerNews):
            self.liaison.hear(word)
        else:
            self.attempts.hear(word)
        if isinstance(word, CycleFailed):
            self._doubt_program(word.sentence)

    def _fetcher_lost(self, sentence: str) -> None:
        self.attempts.lost(sentence)
        self.liaison.lost(sentence)
        self._doubt_program(sentence)

    def _doubt_program(self, sentence: str) -> None:
        """Too many deaths of a slot's fetcher, or of its workers: the package's own is there."""
        if self.fetcher.deaths >= FETCHERS_LOST_MAX and self.fetcher.program != OWN:
            self._distrust(f"{self.fetcher.deaths} times in a row: {sentence}")

    def _ask_source(self) -> None:
        """Ask the fetcher, now and then, whether the update source can be reached."""
        now = self._ledger.loop.clock()
        if now >= self._reach_at and self.fetcher.order(Reach()):
            self._reach_at = now + REACH_INTERVAL_S

    def _attempt_ended(self, outcome: Outcome) -> None:
        _log.info("attempt_ended", outcome=outcome.outcome, release=outcome.release)
        if outcome.outcome == "failed":  # the flip: the check before it had worked
            self.attempts.last_error = LastError(
                at=outcome.ended, code=outcome.reason, sentence=outcome.sentence
            )
        self.attempts.rest()
        is_whole = all(report.intact for report in self._ledger.reports.values())
        if outcome.outcome == "committed" and outcome.cause == "repair" and not is_whole:
            self._verify_slots("repair")  # what was damaged can be mended from what was kept
        if outcome.outcome == "held":
            self._choose_program()
        if outcome.outcome != "reverted":
            return
        if outcome.reason == "slot_damaged":
            self._repair_due()
        self._verify_slots("revert")  # the prior slot has lain there unread for a while

    def _return_to_spare(
        self, reason: str, sentence: str, trigger: str, *, quarantined: bool
    ) -> None:
        """Leave a committed release for the one in the spare slot.

        Raises LifecycleError or OSError: nothing has changed.
        """
        record = self._ledger.record
        attempt = recovery.return_attempt(
            self._ledger, record, reason, sentence, trigger, quarantined=quarantined
        )
        self._ledger.commit(lifecycle.returning(record, attempt))
        self.trial.settle()

    # The control API.

    def reading_handlers(self) -> dict[str, Any]:
        """What the status socket serves."""
        return {"status": self._status, "history": self._history, "version": _version}

    def acting_handlers(self) -> dict[str, Any]:
        """What the control socket serves besides."""
        return {
            **self.reading_handlers(),
            "check": self._check,
            "update": self._update,
            "rollback": self._rollback,
            "repair": self._repair,
            "verify": self._verify,
            "quarantine-clear": self._clear_quarantine,
            "enroll": self._enroll,
            "enrolment": self._enrolment,
        }

    def _status(self, _request: Request) -> dict[str, Any]:
        ledger = self._ledger
        seals = {name: ledger.seal_of(name) for name in ledger.record.slots}
        return status.document(
            status.Facts(
                now=ledger.wall(),
                host_id=ledger.host_id,
                region=ledger.config.region,
                agent_version=__version__,
                pid=os.getpid(),
                fetcher_pid=self.fetcher.pid,
                fetcher_version=self.fetcher.version,
                program=status.ProgramFacts(
                    component=self.programs.component,
                    slot=self.fetcher.program.slot,
                    version=self.fetcher.program.version,
                    problem=self.programs.problem,
                ),
                started=self._started,
                record=ledger.record,
                status=ledger.status,
                seals={name: seal for name, seal in seals.items() if seal},
                reports=ledger.reports,
                quarantine=ledger.quarantine,
                last_check=self.attempts.last_check,
                last_error=self.attempts.last_error,
                next_check=self.fetcher.next_check,
                interval_s=ledger.config.check.interval_s,
                sample=self.trial.latest_sample(),
                watching=self.trial.watching,
                policy=self.trial.policy,
                baseline=self.trial.baseline,
                verifying=self._verifying,
                traits=ledger.config.traits,
                server=self.liaison.document(),
            )
        )

    def _history(self, request: Request) -> list[Any]:
        count = min(max(request.count, 1), HISTORY_MAX)
        return [
            msgspec.to_builtins(item) for item in history.tail(self._ledger.layout.history, count)
        ]

    def _check(self, _request: Request) -> dict[str, Any]:
        return self._begin(download=False)

    def _update(self, _request: Request) -> dict[str, Any]:
        return self._begin(download=True)

    def _repair(self, _request: Request) -> dict[str, Any]:
        """With the package's own program: the slot's may be what is broken."""
        if at_rest(self._ledger) and self.fetcher.program != OWN:
            self._distrust("an administrator asked for a repair (agentctl repair)")
        return self._begin(download=True, afresh=True)

    def _begin(self, *, download: bool, afresh: bool = False) -> dict[str, Any]:
        if not self.attempts.begin("agentctl", download=download, afresh=afresh):
            if self.fetcher.pid is None:
                raise ControlError("the fetcher isn't running yet; try again in a few seconds")
            raise self._in_the_way()
        return {"begun": True}

    def _in_the_way(self) -> ControlError:
        """What is at work, so that nothing else can begin."""
        if self._verifying:
            return ControlError(
                "the installed files are being verified; try again in a few seconds"
            )
        state = self._ledger.status
        return ControlError(
            f"an attempt is in progress ({state.state}: {state.sentence}); "
            "follow it with agentctl status --watch"
        )

    def _rollback(self, _request: Request) -> dict[str, Any]:
        ledger = self._ledger
        sentence = "an administrator asked for the prior release (agentctl rollback)"
        if ledger.record.phase is Phase.TRIAL:
            release = ledger.record.attempt.from_release if ledger.record.attempt else None
            if release is None:
                raise ControlError("this is the first release here; there is none to go back to")
            if not ledger.is_sealed(ledger.record.spare):
                raise ControlError(
                    f"slot {ledger.record.spare} isn't sealed: there is no release to go back to; "
                    "the trial goes on (agentctl explain)"
                )
            self.trial.revert_now("rollback", sentence, quarantined=True)
            return {"release": release}
        if not at_rest(ledger) or self.stager.busy:
            raise self._in_the_way()
        spare = ledger.seal_of(ledger.record.spare)
        if spare is None:
            raise ControlError(
                f"slot {ledger.record.spare} holds no release to go back to; "
                "agentctl status shows both slots"
            )
        if ledger.record.content == ledger.record.slots[ledger.record.spare]:
            raise ControlError(
                f"both slots hold {spare.release}, as after a repair; "
                "there is no other release to go back to (agentctl status)"
            )
        self._return_to_spare("rollback", sentence, "agentctl", quarantined=True)
        return {"release": spare.release}

    def _verify(self, _request: Request) -> dict[str, Any]:
        if not self._verify_slots("agentctl"):
            raise ControlError("there is nothing to verify, or a verification is running")
        return {"begun": True}

    def _enroll(self, request: Request) -> dict[str, Any]:
        return self.liaison.begin(
            action=request.what or "enrol", url=request.url, token=request.token
        )

    def _enrolment(self, request: Request) -> dict[str, Any]:
        return self.liaison.progress(request.count)

    def _clear_quarantine(self, request: Request) -> dict[str, Any]:
        cleared = self._ledger.clear_quarantine(request.what)
        if request.what and not cleared:
            raise ControlError(
                f"no quarantine entry {request.what!r}; agentctl quarantine list shows them"
            )
        return {"cleared": cleared}


def _version(_request: Request) -> dict[str, str]:
    return {"version": __version__}
