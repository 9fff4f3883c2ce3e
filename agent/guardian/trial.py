"""From a sealed spare slot to a kept or reverted release.

The order is what makes it crash-safe: the boot record changes first, durably;
link, settings and engines follow it; what is due after a verdict is repeated
after an interruption until the record says that it is settled.

 * waiting: the machine is watched for its baseline, nothing has changed yet.
 * trial: the new release runs; every second a sample, every sample a verdict.
 * reverting, keeping: `settle` finishes what the record says is due.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable

import msgspec
import structlog

from agent import host
from agent.channel import Staged
from agent.errors import ActivationError, AgentError
from agent.guardian import evidence, lifecycle, quarantine, settings, verdict
from agent.guardian.activation import ActivationRun, chosen
from agent.guardian.health import Prober
from agent.guardian.history import Outcome
from agent.guardian.ledger import Ledger
from agent.guardian.lifecycle import State
from agent.guardian.verdict import Baseline, Carried, Policy, Sample, Verdict, Watching
from agent.loop import Timer
from agent.slots import seal as seals
from agent.slots.record import Attempt, Phase
from feed import durable
from feed.manifest import Activation, HealthPolicy

SAMPLE_INTERVAL_S = 1.0
PERSIST_INTERVAL_S = 15.0  # of healthy seconds; so much is lost at most when power goes
IDLE_SAMPLE_INTERVAL_S = 60.0
RETRY_INTERVAL_S = 2.0  # of a write that the disk refused
NOTES_BYTES_MAX = 8 << 20

_log = structlog.get_logger()


class Notes(msgspec.Struct, frozen=True, kw_only=True):
    """trial.json: what a resumed trial needs besides the boot record."""

    attempt: str
    baseline: Baseline
    carried: Carried | None = None
    wire_bytes: int | None = None
    full_bytes: int | None = None


class Trial:
    """Carries out one flip and what follows; `on_end` is called when it is settled."""

    def __init__(
        self,
        ledger: Ledger,
        prober: Prober,
        *,
        on_end: Callable[[Outcome], None],
        ask_source: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._prober = prober
        self._on_end = on_end
        self._ask_source = ask_source
        self._idle: deque[Sample] = deque(maxlen=verdict.IDLE_SAMPLES_MAX)
        self._before: deque[Sample] = deque(maxlen=verdict.SAMPLES_MAX)
        self._notes: Notes | None = None
        self._watching: Watching | None = None
        self._policy = verdict.DEFAULTS
        self._verdict: Verdict | None = None
        self._activation: ActivationRun | None = None
        self._activation_done_at: float | None = None
        self._timer: Timer | None = None
        self._persisted_s = 0.0
        self._flipped_at: float | None = None  # monotonic, of a flip made by this process
        self._reverted_in_s: float | None = None
        self.source_reachable: bool | None = None  # the fetcher's last word

    # What status shows.

    @property
    def watching(self) -> Watching | None:
        return self._watching

    @property
    def policy(self) -> Policy:
        return self._policy

    @property
    def verdict(self) -> Verdict | None:
        return self._verdict

    @property
    def baseline(self) -> Baseline:
        return self._notes.baseline if self._notes else Baseline()

    def latest_sample(self) -> Sample | None:
        """What was last seen of the protected processes, at most a moment ago."""
        if self._watching and self._watching.last:
            return self._watching.last
        if not self._ledger.config.watch:
            return None
        return self._prober.baseline_tick(self._ledger.loop.clock())

    # Idle: a cheap look now and then, for a long baseline.

    def rest(self) -> None:
        """Nothing is in progress: look at the protected processes once a minute."""
        self._cancel_timer()
        self._prober.stop()
        if self._ledger.config.watch:
            self._timer = self._ledger.loop.call_in(IDLE_SAMPLE_INTERVAL_S, self._look_idly)

    def _look_idly(self) -> None:
        self._idle.append(self._prober.baseline_tick(self._ledger.loop.clock()))
        self.rest()

    def _sample(self) -> Sample:
        now = self._ledger.loop.clock()
        return self._prober.sample(now, source_reachable=self.source_reachable)

    # Waiting: the baseline.

    def begin(
        self, staged: Staged, attempt: Attempt, *, wire_bytes: int | None, full_bytes: int | None
    ) -> None:
        """Watch the machine for its baseline, then flip to the sealed spare slot."""
        ledger = self._ledger
        self._policy = self._resolve(staged.health)
        self._before.clear()
        self._notes = Notes(
            attempt=attempt.id, baseline=Baseline(), wire_bytes=wire_bytes, full_bytes=full_bytes
        )
        self._reverted_in_s = None
        watched_s = self._policy.baseline_s if ledger.record.active and ledger.config.watch else 0
        ledger.to(
            State.WAITING,
            reason="baseline",
            sentence=f"release {staged.release} is staged; the machine is watched for "
            f"{watched_s:g} s before the flip",
            release=staged.release,
        )
        self._cancel_timer()
        self.source_reachable = True  # the release has just come from it
        self._prober.start()
        self._watch_before(attempt, staged, until=ledger.loop.clock() + watched_s)

    def _resolve(self, release: HealthPolicy) -> Policy:
        return verdict.resolve(release, self._ledger.config.health.as_policy())

    def _watch_before(self, attempt: Attempt, staged: Staged, *, until: float) -> None:
        now = self._ledger.loop.clock()
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
        baseline = verdict.measure(tuple(self._before), tuple(self._idle))
        attempt = msgspec.structs.replace(attempt, flipped_at=ledger.wall())
        try:
            self._notes = self._keep_notes(baseline=baseline)
            record = lifecycle.flipped(
                ledger.record, attempt, tries=self._policy.tries, boot_id=ledger.boot_id
            )
            ledger.commit(record)
        except OSError as error:
            self._fail_before_flip(attempt, f"the flip couldn't be recorded: {error}")
            return
        self._flipped_at = ledger.loop.clock()
        self._watching = verdict.begin(baseline)
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
        self._enter(reason="flip")

    def _fail_before_flip(self, attempt: Attempt, sentence: str) -> None:
        self._ledger.to(State.FAILED, reason="disk_full", sentence=sentence)
        self._end(attempt, "failed", reason="disk_full", sentence=sentence)

    # Trial.

    def resume(self, *, rebooted: bool) -> None:
        """Take up the trial that the boot record tells of."""
        self._notes = self._load_notes()
        seal = self._ledger.active_seal
        self._policy = self._resolve(seal.health if seal else HealthPolicy())
        carried = self._notes.carried or Carried()
        carried = msgspec.structs.replace(carried, healthy_s=self._ledger.record.healthy_s)
        self._watching = verdict.begin(self._notes.baseline, carried, rebooted=rebooted)
        self._enter(reason="flip")

    def _enter(self, *, reason: str) -> None:
        """Link, settings, engines: make the machine what the record says."""
        host.raise_priority()
        self._cancel_timer()
        self._prober.start()
        self._activation_done_at = None
        try:
            self._ledger.switch_link()
            self._apply_settings()
        except (OSError, AgentError, ValueError) as error:
            self._revert("activation_failed", f"the release couldn't be put in place: {error}")
            return
        self._activate(reason, done=self._activated)
        self._ask_source()
        self._tick()

    def _apply_settings(self) -> None:
        record, seal = self._ledger.record, self._ledger.active_seal
        if record.attempt is None or record.active is None or seal is None:
            return
        settings.apply(
            self._ledger.layout,
            self._ledger.layout.slot(record.active),
            seal,
            self._ledger.config.settings,
            attempt=record.attempt.id,
        )

    def _activate(self, reason: str, *, done: Callable[[ActivationError | None], None]) -> None:
        ledger, seal = self._ledger, self._ledger.active_seal
        self._activation = ActivationRun(
            ledger.loop,
            chosen(ledger.config.activation, seal.activation if seal else Activation()),
            current=ledger.layout.current,
            release=seal.release if seal else "",
            reason=reason,
            done=done,
        )

    def _activated(self, error: ActivationError | None) -> None:
        self._activation = None
        self._activation_done_at = self._ledger.loop.clock()
        if error:
            self._revert("activation_failed", str(error))

    def _tick(self) -> None:
        """One look, one verdict."""
        ledger = self._ledger
        if ledger.record.phase is not Phase.TRIAL or self._watching is None:
            return
        self._timer = ledger.loop.call_in(SAMPLE_INTERVAL_S, self._tick)
        self._watching = verdict.observe(
            self._watching,
            self._sample(),
            self._policy,
            self.baseline,
            activation_done_at=self._activation_done_at,
        )
        self._verdict = verdict.judge(self._watching, self._policy, self.baseline)
        ledger.show_progress(*verdict.progress(self._watching, self._policy))
        self._persist()
        self._act()

    def _act(self) -> None:
        found = self._verdict
        if found is None or found.outcome is verdict.Outcome.WAIT:
            if found:
                self._ledger.to(State.TRIAL, reason=found.reason, sentence=found.sentence)
                if found.reason is verdict.Reason.SOURCE_UNREACHABLE:
                    self._ask_source()
        elif found.outcome is verdict.Outcome.KEEP:
            self._keep(found)
        else:
            self._revert(found.reason, found.sentence)

    def _persist(self) -> None:
        """Store the healthy seconds now and then. A refused write costs only those."""
        watching = self._watching
        if watching is None or watching.healthy_s < self._persisted_s + PERSIST_INTERVAL_S:
            return
        self._persisted_s = watching.healthy_s
        try:
            self._notes = self._keep_notes(carried=watching.carried)
            self._ledger.commit(
                lifecycle.observed(self._ledger.record, healthy_s=watching.healthy_s)
            )
        except OSError as error:
            _log.warning("probation_not_stored", problem=str(error))

    def pause(self) -> None:
        """The guardian is stopped in order: the next boot uses up no try."""
        self._cancel_timer()
        if self._activation:
            self._activation.cancel()
        if self._ledger.record.phase is not Phase.TRIAL:
            return
        record = self._ledger.record
        if self._watching:
            record = lifecycle.observed(record, healthy_s=self._watching.healthy_s)
        with contextlib.suppress(OSError):
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
        name = self._keep_evidence(attempt, reason, sentence)
        record = lifecycle.reverting(
            ledger.record,
            reason=reason,
            sentence=sentence,
            quarantine=quarantined,
            evidence=name,
        )
        _log.warning("reverting", release=attempt.release, reason=reason, detail=sentence)
        try:
            ledger.commit(record)
        except OSError as error:
            # The machine comes first: go back now; settle writes the record when it can.
            _log.error("revert_not_written", problem=str(error))
            ledger.adopt(record)
        self.settle()

    def _keep_evidence(self, attempt: Attempt, reason: str, sentence: str) -> str | None:
        if self._watching is None:
            return None
        found = self._verdict or verdict.judge(self._watching, self._policy, self.baseline)
        document = evidence.build(self.baseline, self._watching, self._policy, found) | {
            "attempt": attempt.id,
            "release": attempt.release,
            "from_release": attempt.from_release,
            "reason": reason,
            "sentence": sentence,
        }
        data = msgspec.json.encode(document)
        return self._ledger.keep_evidence(quarantine.evidence_name(attempt.id), data)

    def settle(self) -> None:
        """Finish what the record says is due; safe to repeat after an interruption."""
        ledger = self._ledger
        attempt = ledger.record.attempt
        if attempt is None:
            return
        self._cancel_timer()
        self._notes = self._notes or self._load_notes()
        if self._activation:
            self._activation.cancel()
            self._activation = None
        if ledger.record.phase is Phase.KEEPING:
            self._finish("committed")
            return
        ledger.to(State.REVERTING, reason=attempt.reason, sentence=attempt.sentence)
        try:
            ledger.switch_link()
            settings.revert(ledger.layout, attempt=attempt.id)
        except (OSError, ValueError) as error:
            _log.error("revert_interrupted", problem=str(error))
            self._timer = ledger.loop.call_in(RETRY_INTERVAL_S, self.settle)
            return
        if self._flipped_at is not None and self._reverted_in_s is None:
            self._reverted_in_s = ledger.loop.clock() - self._flipped_at
        self._activate("revert", done=self._deactivated)

    def _deactivated(self, error: ActivationError | None) -> None:
        """The engines have been told; a hook that fails now can't stop the revert."""
        self._activation = None
        if error:
            _log.error("revert_hook_failed", problem=str(error))
        self._finish("reverted")

    def _finish(self, outcome: str) -> None:
        ledger = self._ledger
        attempt = ledger.record.attempt
        if attempt is None:
            return
        left = ledger.record.spare if outcome == "reverted" else None
        try:
            if outcome == "reverted" and attempt.quarantine and attempt.changed:
                ledger.add_to_quarantine(self._entry(attempt))
            self._write_end(attempt, outcome)
            if left:
                durable.remove(ledger.layout.slot(left) / seals.SEAL_NAME)
            ledger.commit(lifecycle.settled(ledger.record))
            settings.forget(ledger.layout)
            durable.remove(ledger.layout.trial_notes)
        except OSError as error:
            _log.error("settling_interrupted", problem=str(error))
            self._timer = ledger.loop.call_in(RETRY_INTERVAL_S, lambda: self._finish(outcome))
            return
        host.reset_priority()
        state = State.COMMITTED if outcome == "committed" else State.REVERTED
        ledger.to(state, reason=attempt.reason, sentence=attempt.sentence, release=attempt.release)
        self._end(attempt, outcome, reason=attempt.reason, sentence=attempt.sentence, written=True)

    def _entry(self, attempt: Attempt) -> quarantine.Entry:
        now = self._ledger.wall()
        return quarantine.Entry(
            id=quarantine.entry_id(attempt.changed),
            changed=attempt.changed,
            release=attempt.release,
            reason=attempt.reason,
            sentence=attempt.sentence,
            since=now,
            until=now + self._ledger.config.quarantine_s,
            attempt=attempt.id,
            evidence=attempt.evidence,
        )

    def _outcome(self, attempt: Attempt, outcome: str, *, reason: str, sentence: str) -> Outcome:
        now = self._ledger.wall()
        return Outcome(
            attempt=attempt.id,
            outcome=outcome,
            release=attempt.release,
            from_release=attempt.from_release,
            trigger=attempt.trigger,
            reason=reason,
            sentence=sentence,
            ended=now,
            flipped=attempt.flipped_at or None,
            cause=attempt.cause,
            wire_bytes=self._notes.wire_bytes if self._notes else None,
            full_bytes=self._notes.full_bytes if self._notes else None,
            seconds_in_trial=self._reverted_in_s
            if self._reverted_in_s is not None
            else (now - attempt.flipped_at if attempt.flipped_at else None),
            evidence=attempt.evidence,
        )

    def _write_end(self, attempt: Attempt, outcome: str) -> None:
        self._ledger.remember(
            self._outcome(attempt, outcome, reason=attempt.reason, sentence=attempt.sentence)
        )

    def _end(
        self, attempt: Attempt, outcome: str, *, reason: str, sentence: str, written: bool = False
    ) -> None:
        ended = self._outcome(attempt, outcome, reason=reason, sentence=sentence)
        if not written:
            self._ledger.remember(ended)
        self._notes = None
        self._watching = None
        self._verdict = None
        self._flipped_at = None
        self._persisted_s = 0.0
        self.rest()
        self._on_end(ended)

    # trial.json

    def _keep_notes(
        self, *, baseline: Baseline | None = None, carried: Carried | None = None
    ) -> Notes:
        notes = self._notes or Notes(attempt="", baseline=Baseline())
        notes = msgspec.structs.replace(
            notes,
            baseline=notes.baseline if baseline is None else baseline,
            carried=notes.carried if carried is None else carried,
        )
        path = self._ledger.layout.trial_notes
        durable.replace(path, msgspec.json.encode(notes), mode=0o644)
        return notes

    def _load_notes(self) -> Notes:
        """The notes of the trial in progress; without them it starts with no baseline."""
        attempt = self._ledger.record.attempt
        wanted = attempt.id if attempt else ""
        try:
            with self._ledger.layout.trial_notes.open("rb") as file:
                notes = msgspec.json.decode(file.read(NOTES_BYTES_MAX), type=Notes)
            if notes.attempt == wanted:
                return notes
            problem = f"they are of attempt {notes.attempt}"
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            problem = str(error)
        _log.warning("trial_notes_lost", problem=problem)
        return Notes(attempt=wanted, baseline=Baseline())

    def _cancel_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
