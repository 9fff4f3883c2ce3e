"""From a sealed spare slot to a verdict.

The order is what makes it crash-safe: the boot record changes first, durably;
link, settings and engines follow it.

 * waiting: the machine is watched for its baseline, nothing has changed yet.
 * trial: the new release runs; every second a sample, every sample a verdict.
 * what is due after the verdict is settlement's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections import deque
from collections.abc import Callable

import msgspec
import structlog

from agent import host
from agent.channel import Staged
from agent.errors import ActivationError, AgentError, LifecycleError, StarvedError
from agent.guardian import (
    bad_slots,
    evidence,
    lifecycle,
    notes,
    quarantine,
    recovery,
    relief,
    settings,
    settlement,
    verdict,
)
from agent.guardian.activation import STARVED, ActivationRun
from agent.guardian.health import Prober
from agent.guardian.history import Outcome
from agent.guardian.ledger import Ledger
from agent.guardian.lifecycle import State
from agent.guardian.notes import Notes
from agent.guardian.samples import Census, ProgramSample
from agent.guardian.settlement import Settlement, activate
from agent.guardian.verdict import Baseline, Carried, Policy, Sample, Verdict, Watching
from agent.loop import Timer
from agent.slots.record import Attempt, Held, Phase
from feed.manifest import HealthPolicy

SAMPLE_INTERVAL_S = 1.0
PERSIST_INTERVAL_S = 15.0  # of healthy seconds; so much is lost at most when power goes
IDLE_SAMPLE_INTERVAL_S = 60.0
# Of a disk or machine that is full for now, whatever the release: nothing to quarantine for.
PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, *STARVED}
if sys.platform == "win32":
    PASSING.add(errno.EACCES)  # somebody has the file open

_log = structlog.get_logger()


class Trial:
    """Carries out one flip after another; on_end is called when one is settled."""

    def __init__(
        self,
        ledger: Ledger,
        prober: Prober,
        *,
        on_end: Callable[[Outcome], None],
        ask_source: Callable[[], None],
        on_switch: Callable[[], None] = lambda: None,
        program: Callable[[], tuple[ProgramSample, ...]] = tuple,
    ) -> None:
        """on_switch: another slot is active. program: what is known of a new agent program."""
        self.policy = verdict.DEFAULTS
        self.watching: Watching | None = None
        self.source_reachable: bool | None = None  # the fetcher's last word
        self._ledger = ledger
        self._prober = prober
        self._on_end = on_end
        self._ask_source = ask_source
        self._on_switch = on_switch
        self._program = program
        self._idle: deque[Sample] = deque(maxlen=verdict.IDLE_SAMPLES_MAX)
        self._before: deque[Sample] = deque(maxlen=verdict.SAMPLES_MAX)
        self._notes: Notes | None = None
        self._verdict: Verdict | None = None
        self._activation: ActivationRun | None = None
        self._activation_done_at: float | None = None
        self._starved = 0  # times that the hooks couldn't be started
        self._hooks_again: Timer | None = None
        self._settlement: Settlement | None = None
        self._timer: Timer | None = None
        self._persisted_s = 0.0
        self._flipped_at: float | None = None  # monotonic, of a flip made by this process

    @property
    def baseline(self) -> Baseline:
        """The machine before the flip."""
        return self._notes.baseline if self._notes else Baseline()

    def latest_sample(self) -> Sample | None:
        """What was last seen of the protected processes, at most a moment ago."""
        if self.watching and self.watching.last:
            return self.watching.last
        if not self._ledger.config.watch:
            return None
        if self._ledger.status.state is State.WAITING and self._before:
            return self._before[-1]  # a look in between would cut the baseline's samples short
        return self._prober.baseline_tick(self._ledger.loop.clock())

    # At rest: a cheap look now and then, for a long baseline.

    def rest(self) -> None:
        """Nothing is in progress: look at the protected processes once a minute."""
        self._cancel_timer()
        self._prober.stop()
        if self._ledger.config.watch:
            self._timer = self._ledger.loop.call_in(IDLE_SAMPLE_INTERVAL_S, self._look_idly)

    def _look_idly(self) -> None:
        with contextlib.suppress(OSError):
            self._idle.append(self._prober.baseline_tick(self._ledger.loop.clock()))
        self.rest()

    def _sample(self) -> Sample:
        now = self._ledger.loop.clock()
        seen = self._prober.sample(now, source_reachable=self.source_reachable)
        if any(item.starved for item in seen.probes) and self._is_crowded_by_an_engine():
            owed = (msgspec.structs.replace(item, starved=False) for item in seen.probes)
            seen = msgspec.structs.replace(seen, probes=tuple(owed))
        return msgspec.structs.replace(seen, program=self._program())

    def _is_crowded_by_an_engine(self) -> bool:
        """Whether a watched engine is what leaves this machine no process."""
        try:
            return relief.crowd(self._census(), own=os.getpid()) is not None
        except OSError:  # no descriptor left to look with
            return False

    # Waiting: the baseline.

    def begin(
        self, staged: Staged, attempt: Attempt, *, wire_bytes: int | None, full_bytes: int | None
    ) -> None:
        """Watch the machine for its baseline, then flip to the sealed spare slot."""
        ledger = self._ledger
        self.policy = self._resolve(staged.health)
        self._before.clear()
        self._notes = Notes(
            attempt=attempt.id,
            slot=ledger.record.spare,
            wire_bytes=wire_bytes,
            full_bytes=full_bytes,
        )
        watched_s = self.policy.baseline_s if ledger.record.active and ledger.config.watch else 0
        ledger.to(
            State.WAITING,
            reason="baseline",
            sentence=f"release {staged.release} is staged; the machine is watched for "
            f"{watched_s:g} s before the flip",
            release=staged.release,
        )
        self._cancel_timer()
        seal = ledger.seal_of(ledger.record.spare)
        if seal and (problem := settings.obstacle(seal, ledger.config.settings)):
            self._fail_before_flip(attempt, "settings_unwritable", problem)
            return
        self.source_reachable = True  # the release has just come from it
        self._prober.start()
        self._watch_before(attempt, staged, until=ledger.loop.clock() + watched_s)

    def _resolve(self, release: HealthPolicy) -> Policy:
        return verdict.resolve(release, self._ledger.config.health.as_policy())

    def _watch_before(self, attempt: Attempt, staged: Staged, *, until: float) -> None:
        now = self._ledger.loop.clock()
        with contextlib.suppress(OSError):  # a look less
            self._before.append(self._sample())
        if now < until:
            self._timer = self._ledger.loop.call_in(
                min(SAMPLE_INTERVAL_S, until - now),
                lambda: self._watch_before(attempt, staged, until=until),
            )
            return
        self._flip(attempt, staged)

    def _flip(self, attempt: Attempt, staged: Staged) -> None:
        ledger = self._ledger
        attempt = msgspec.structs.replace(attempt, flipped_at=ledger.wall())
        try:
            baseline = verdict.measure(tuple(self._before), tuple(self._idle))
            self._note(baseline=baseline)
            record = lifecycle.flipped(
                ledger.record, attempt, tries=self.policy.tries, boot_id=ledger.boot_id
            )
            ledger.commit(record)
        except (OSError, LifecycleError) as error:
            code = "disk_full" if isinstance(error, OSError) else error.code
            self._fail_before_flip(attempt, code, f"the flip couldn't be recorded: {error}")
            return
        self._flipped_at = ledger.loop.clock()
        self.watching = verdict.begin(baseline)
        ledger.to(
            State.TRIAL,
            reason="flipped",
            sentence=f"slot {record.active} runs {staged.release} on probation",
            release=staged.release,
        )
        _log.info(
            "slot_flipped",
            active=record.active,
            release=staged.release,
            tries_left=record.tries_left,
        )
        self._enter()

    def _fail_before_flip(self, attempt: Attempt, code: str, sentence: str) -> None:
        self._ledger.to(State.FAILED, reason=code, sentence=sentence)
        ended = Outcome(
            attempt=attempt.id,
            outcome="failed",
            release=attempt.release,
            from_release=attempt.from_release,
            trigger=attempt.trigger,
            reason=code,
            sentence=sentence,
            ended=self._ledger.wall(),
        )
        self._ledger.remember(ended)
        self._ended(ended)

    # Trial.

    def resume(self, *, rebooted: bool) -> None:
        """Take up the trial that the boot record tells of.

        The boot guard may have counted this boot before: whether anybody has watched
        the trial in it, the notes know.
        """
        ledger = self._ledger
        self._notes = self._load_notes()
        rebooted = rebooted or self._notes.boot_id not in {"", ledger.boot_id}
        seal = ledger.active_seal
        self.policy = self._resolve(seal.health if seal else HealthPolicy())
        carried = msgspec.structs.replace(
            self._notes.carried or Carried(), healthy_s=ledger.record.healthy_s
        )
        self._persisted_s = carried.healthy_s
        self.watching = verdict.begin(self._notes.baseline, carried, rebooted=rebooted)
        self._enter()

    def _enter(self) -> None:
        """Link, settings, engines: make the machine what the record says."""
        host.raise_priority()
        self._cancel_timer()
        self._prober.start()
        self._activation_done_at = None
        self._starved = 0
        try:
            self._ledger.switch_link()
            recovery.apply_settings(self._ledger)
        except (OSError, AgentError, ValueError) as error:
            self._revert(
                "activation_failed",
                f"the release couldn't be put in place: {error}",
                quarantined=not (isinstance(error, OSError) and error.errno in PASSING),
            )
            return
        self._activation = activate(self._ledger, "flip", self._activated)
        self._on_switch()
        self._tick()

    def _activated(self, error: ActivationError | None) -> None:
        if self._activation and isinstance(error, StarvedError):
            self._wait_for_room(self._activation, error)
            return
        self._activation = None
        self._activation_done_at = self._ledger.loop.clock()
        if error:
            self._revert("activation_failed", str(error))

    def _wait_for_room(self, starved: ActivationRun, error: StarvedError) -> None:
        """For a process to run the next hook in, as long as no engine is to blame."""
        self._starved += 1
        guilty = self._starved >= relief.ENDED_AFTER and self._is_starved_by_an_engine()
        if guilty or self._starved > relief.TRIES:
            self._revert("activation_failed", str(error), quarantined=guilty)
            return
        self._hooks_again = self._ledger.loop.call_in(settlement.RETRY_INTERVAL_S, starved.resume)

    def _is_starved_by_an_engine(self) -> bool:
        """Memory or processes: whether a watched engine has taken what is missing."""
        gates = verdict.gates(self.watching, self.policy, self.baseline) if self.watching else ()
        grown = any(item.holding and item.name is verdict.Reason.MEMORY_GROWTH for item in gates)
        return grown or self._is_crowded_by_an_engine()

    def _stop_telling(self) -> None:
        if self._hooks_again:
            self._hooks_again.cancel()
        if self._activation:
            self._activation.cancel()
        self._hooks_again = self._activation = None

    def _tick(self) -> None:
        """One look, one verdict."""
        if self._ledger.record.phase is not Phase.TRIAL or self.watching is None:
            return
        self._timer = self._ledger.loop.call_in(SAMPLE_INTERVAL_S, self._tick)
        try:
            sample = self._sample()
        except OSError as error:  # no descriptor left, say: unobserved time is never healthy
            _log.warning("look_failed", problem=str(error))
            return
        self.watching = verdict.observe(
            self.watching,
            sample,
            self.policy,
            self.baseline,
            activation_done_at=self._activation_done_at,
        )
        found = self._verdict = verdict.judge(self.watching, self.policy, self.baseline)
        self._ask_source()
        self._persist()
        if found.outcome is verdict.Outcome.KEEP and self._activation is None:
            self._keep(found)
        elif found.outcome is verdict.Outcome.REVERT:
            self._revert(found.reason, found.sentence)
        else:
            self._ledger.to(State.TRIAL, reason=found.reason, sentence=found.sentence)
            self._ledger.show_progress(*verdict.progress(self.watching, self.policy))

    def _persist(self) -> None:
        """Store the healthy seconds now and then. A refused write costs only those."""
        watching = self.watching
        if watching is None or watching.healthy_s < self._persisted_s + PERSIST_INTERVAL_S:
            return
        self._persisted_s = watching.healthy_s
        try:
            self._note(carried=watching.carried)
            self._ledger.commit(
                lifecycle.observed(self._ledger.record, healthy_s=watching.healthy_s)
            )
        except OSError as error:
            _log.warning("probation_not_stored", problem=str(error))

    def pause(self) -> None:
        """The guardian is stopped in order: the next boot uses up no try."""
        self._cancel_timer()
        if self._settlement:
            self._settlement.cancel()
        self._stop_telling()
        record = self._ledger.record
        if record.phase is not Phase.TRIAL or self.watching is None:
            return
        record = lifecycle.observed(record, healthy_s=self.watching.healthy_s)
        with contextlib.suppress(OSError):
            self._note(carried=self.watching.carried)
            self._ledger.commit(lifecycle.stopped_cleanly(record))

    # Verdicts.

    def _keep(self, found: Verdict) -> None:
        ledger = self._ledger
        try:
            ledger.commit(
                lifecycle.keeping(ledger.record, reason=found.reason, sentence=found.sentence)
            )
        except OSError as error:  # still on trial: the next sample tries again
            _log.error("commit_not_written", problem=str(error))
            return
        self.settle()

    def revert_now(self, reason: str, sentence: str, *, quarantined: bool) -> None:
        """End a running trial: an administrator, or a slot found damaged."""
        self._revert(reason, sentence, quarantined=quarantined)

    def _revert(self, reason: str, sentence: str, *, quarantined: bool = True) -> None:
        ledger = self._ledger
        attempt = ledger.record.attempt
        if ledger.record.phase is not Phase.TRIAL or attempt is None:
            return
        kept = self._keep_evidence(attempt, reason, sentence)
        held = bad_slots.to_hold(ledger, reason, sentence) if reason != "rollback" else None
        if held:
            self._hold(held, evidence=kept)
            return
        record = lifecycle.reverting(
            ledger.record,
            reason=reason,
            sentence=sentence,
            quarantine=quarantined,
            evidence=kept,
        )
        record = lifecycle.with_held(record, bad_slots.against_prior(ledger, record))
        _log.warning("reverting", release=attempt.release, reason=reason, detail=sentence)
        try:
            ledger.commit(record)
        except OSError as error:
            # The machine comes first: go back now; settling writes the record when it can.
            _log.error("revert_not_written", problem=str(error))
            ledger.adopt(record)
        self.settle()

    def _hold(self, held: Held, *, evidence: str | None) -> None:
        """Both slots are bad: stay on this one."""
        ledger = self._ledger
        _log.error("both_slots_bad", held=ledger.record.active, detail=held.sentence)
        record = lifecycle.holding(ledger.record, held=held, evidence=evidence)
        try:
            ledger.commit(record)
        except OSError as error:
            _log.error("hold_not_written", problem=str(error))
            ledger.adopt(record)  # settling writes it when it can
        self.settle()

    def _keep_evidence(self, attempt: Attempt, reason: str, sentence: str) -> str | None:
        if self.watching is None:
            return None
        found = self._verdict or verdict.judge(self.watching, self.policy, self.baseline)
        document = evidence.build(self.baseline, self.watching, self.policy, found) | {
            "attempt": attempt.id,
            "release": attempt.release,
            "from_release": attempt.from_release,
            "reason": reason,
            "sentence": sentence,
        }
        name = quarantine.evidence_name(attempt.id)
        return self._ledger.keep_evidence(name, msgspec.json.encode(document))

    def settle(self) -> None:
        """Finish what the record says is due, also after an interruption."""
        self._cancel_timer()
        self._stop_telling()
        self._settlement = Settlement(
            self._ledger,
            self._notes or self._load_notes(),
            flipped_at=self._flipped_at,
            on_end=self._ended,
            relieve=lambda: relief.end_crowd(self._census, self._prober.life_of, own=os.getpid()),
        )
        self._settlement.start()
        self._on_switch()

    def _census(self) -> Census:
        return self._prober.census(self._ledger.loop.clock())

    def _ended(self, outcome: Outcome) -> None:
        self.watching = None
        self._notes = None
        self._verdict = None
        self._settlement = None
        self._flipped_at = None
        self._persisted_s = 0.0
        self.rest()
        self._on_end(outcome)

    def _note(self, *, baseline: Baseline | None = None, carried: Carried | None = None) -> None:
        """Store the trial's notes with what is new. Raises OSError."""
        known = self._notes or Notes(attempt="")
        self._notes = msgspec.structs.replace(
            known,
            boot_id=self._ledger.boot_id,
            baseline=known.baseline if baseline is None else baseline,
            carried=known.carried if carried is None else carried,
        )
        notes.store(self._ledger.layout.trial_notes, self._notes)

    def _load_notes(self) -> Notes:
        attempt = self._ledger.record.attempt
        return notes.load(self._ledger.layout.trial_notes, attempt=attempt.id if attempt else "")

    def _cancel_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
