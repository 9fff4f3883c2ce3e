"""What is due after a verdict: link, settings, engines, quarantine, history.

The boot record has already said how the trial ended; here the machine is made
to agree with it. Every step may be repeated, and is after an interruption or a
refused write, until the record says that all of it is settled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import structlog

from agent import host
from agent.errors import ActivationError, StarvedError
from agent.guardian import bad_slots, lifecycle, quarantine, recovery, relief, settings
from agent.guardian.activation import ActivationRun, chosen
from agent.guardian.history import Outcome
from agent.guardian.ledger import Ledger
from agent.guardian.lifecycle import State
from agent.guardian.notes import Notes
from agent.loop import Timer
from agent.slots import seal as seals
from agent.slots.record import Attempt, BootRecord, Phase
from feed import durable
from feed.manifest import Activation

RETRY_INTERVAL_S = 2.0  # of a step that the disk refused
SETTINGS_TRIES = 5  # then the engines are told without them
HISTORY_TRIES = 5  # then the attempt ends without its line

_log = structlog.get_logger()


def activate(
    ledger: Ledger,
    reason: str,
    done: Callable[[ActivationError | None], None],
    *,
    to_the_end: bool = False,
) -> ActivationRun:
    """Tell the engines to take what the current link points at; reason is flip or revert.

    to_the_end: all of them, whatever fails (see ActivationRun).

    Going back also takes the hooks of the release that is left: the engines
    that took it must hear of its end. Where it can't be asked any more, all run.
    """
    seal, wanted = ledger.active_seal, Activation()
    if seal and reason == "flip":
        wanted = seal.activation
    elif seal and (left := ledger.seal_of(ledger.record.spare)):
        wanted = _both(seal.activation, left.activation)
    return ActivationRun(
        ledger.loop,
        chosen(ledger.config.activation, wanted),
        current=ledger.layout.current,
        release=seal.release if seal else "",
        reason=reason,
        done=done,
        to_the_end=to_the_end,
    )


def _both(one: Activation, other: Activation) -> Activation:
    if one.hooks is None or other.hooks is None:
        return Activation()
    return Activation(hooks=(*one.hooks, *other.hooks))


def _word(record: BootRecord) -> str:
    """How the attempt ends, for the history."""
    if record.phase is Phase.REVERTING:
        return "reverted"
    return "held" if record.attempt and record.attempt.held else "committed"


class Settlement:
    """Finishes one keep or revert; on_end gets its outcome once it is on the disk.

    flipped_at is the monotonic time of the flip, None when another process made it;
    relieve ends the engine that leaves the machine no process (see relief).
    """

    def __init__(
        self,
        ledger: Ledger,
        notes: Notes,
        *,
        flipped_at: float | None,
        on_end: Callable[[Outcome], None],
        relieve: Callable[[], object] = lambda: None,
    ) -> None:
        self._ledger = ledger
        self._notes = notes
        self._flipped_at = flipped_at
        self._on_end = on_end
        self._relieve = relieve
        self._reverted_in_s: float | None = None
        self._settings_tries = 0
        self._history_tries = 0
        self._starved = 0
        self._activation: ActivationRun | None = None
        self._timer: Timer | None = None

    def start(self) -> None:
        """Do what the record says is due."""
        ledger = self._ledger
        attempt = ledger.record.attempt
        if attempt is None:
            return
        if ledger.record.phase is Phase.REVERTING:
            ledger.to(State.REVERTING, reason=attempt.reason, sentence=attempt.sentence)
        elif self._flipped_at is not None or not attempt.held:
            self._finish()  # its trial has put it in place
            return
        try:
            ledger.switch_link()
            self._put_settings_in_place()
        except (OSError, ValueError) as error:
            _log.error("settling_interrupted", problem=str(error))
            self._timer = ledger.loop.call_in(RETRY_INTERVAL_S, self.start)
            return
        if self._flipped_at is not None and self._reverted_in_s is None:
            self._reverted_in_s = ledger.loop.clock() - self._flipped_at
        self._tell()

    def _tell(self) -> None:
        reason = "revert" if self._ledger.record.phase is Phase.REVERTING else "flip"
        self._activation = activate(self._ledger, reason, self._activated, to_the_end=True)

    def _put_settings_in_place(self) -> None:
        """A target that is gone for good must not keep the engines from being told.

        Raises OSError: it is worth another try.
        """
        is_revert = self._ledger.record.phase is Phase.REVERTING
        try:
            if is_revert:
                recovery.revert_settings(self._ledger)
            else:
                recovery.apply_settings(self._ledger)
        except (ActivationError, ValueError) as error:
            if is_revert:
                raise
            _log.error("settings_not_in_place", problem=str(error))  # nor would they be later
        except OSError as error:
            self._settings_tries += 1
            if self._settings_tries < SETTINGS_TRIES:
                raise
            kept = settings.set_aside(self._ledger.layout) if is_revert else None
            _log.error("settings_not_in_place", problem=str(error), kept=str(kept))

    def _activated(self, error: ActivationError | None) -> None:
        """The engines have been told; a hook that fails now can't stop the way back."""
        if error:
            _log.error("settling_hook_failed", problem=str(error))
        if self._activation and isinstance(error, StarvedError):
            self._wait_for_room(self._activation)
            return
        self._activation = None
        self._finish()

    def _wait_for_room(self, starved: ActivationRun) -> None:
        """For a process to run the next hook in: a while, then go on without that hook."""
        self._starved += 1
        if self._starved > relief.TRIES:
            starved.skip()
            return
        if self._starved == relief.ENDED_AFTER:
            self._relieve()
        self._timer = self._ledger.loop.call_in(RETRY_INTERVAL_S, starved.resume)

    def _finish(self) -> None:
        ledger = self._ledger
        attempt = ledger.record.attempt
        if attempt is None:
            return
        outcome = _word(ledger.record)
        ended = self._outcome(attempt, outcome)
        try:
            if self._turns_back():
                return
            if outcome != "committed":
                self._hold_back(attempt)
            for name in lifecycle.given_up(ledger.record):
                durable.remove(ledger.layout.slot(name) / seals.SEAL_NAME)
            self._remember(ended)
            durable.remove(ledger.layout.trial_notes)  # first: they say that it isn't settled
            ledger.commit(lifecycle.settled(ledger.record))
        except OSError as error:
            _log.error("settling_interrupted", problem=str(error))
            self._timer = ledger.loop.call_in(RETRY_INTERVAL_S, self._finish)
            return
        if outcome == "reverted":
            active = ledger.record.content
            with contextlib.suppress(OSError):  # the next start tries again
                settings.keep_only(ledger.layout, owner=active.seal if active else None)
        host.reset_priority()
        state = State.REVERTED if outcome == "reverted" else State.COMMITTED
        reason = "both_slots_bad" if outcome == "held" else attempt.reason
        ledger.to(state, reason=reason, sentence=attempt.sentence, release=attempt.release)
        self._on_end(ended)

    def _turns_back(self) -> bool:
        """Whether the slot gone back to has lost its seal since: then the other is kept.

        Raises OSError: that can't be written.
        """
        kept = bad_slots.way_back(self._ledger, self._ledger.record)
        if kept is self._ledger.record:
            return False
        self._ledger.commit(kept)
        self._flipped_at = self._reverted_in_s = None  # link, settings and engines are due again
        self._timer = self._ledger.loop.call_in(0, self.start)
        return True

    def _remember(self, ended: Outcome) -> None:
        """The line is worth waiting for, and not worth a machine that never comes to rest.

        Raises OSError: it is worth another try.
        """
        self._history_tries += 1
        if not self._ledger.remember(ended) and self._history_tries < HISTORY_TRIES:
            raise OSError("the history's line wasn't written")

    def _hold_back(self, attempt: Attempt) -> None:
        """Quarantine what failed, unless it is all of what was gone back to."""
        changed = attempt.changed or self._all_that_is_left()
        active = self._ledger.active_seal
        is_back = not attempt.held and active is not None and active.contents == changed
        if attempt.quarantine and changed and not is_back:
            self._ledger.add_to_quarantine(self._entry(attempt, changed))

    def _all_that_is_left(self) -> dict[str, str]:
        """Of a release that only left components out: all it has is what tells it from others."""
        seals_left = [
            self._ledger.seal_of(name) for name in recovery.left_slots(self._ledger.record)
        ]
        return {
            name: digest for seal in seals_left if seal for name, digest in seal.contents.items()
        }

    def _entry(self, attempt: Attempt, changed: dict[str, str]) -> quarantine.Entry:
        # A clock without a battery stands in the past until the network has set it.
        now = max(self._ledger.wall(), attempt.flipped_at)
        return quarantine.Entry(
            id=quarantine.entry_id(changed),
            changed=changed,
            release=attempt.release,
            reason=attempt.reason,
            sentence=attempt.sentence,
            since=now,
            until=now + self._ledger.config.quarantine_s,
            attempt=attempt.id,
            evidence=attempt.evidence,
        )

    def _seconds_in_trial(self, attempt: Attempt, now: float) -> float | None:
        """By the monotonic clock where this process made the flip, else by the wall clock."""
        if self._flipped_at is not None:
            return self._ledger.loop.clock() - self._flipped_at
        return max(now - attempt.flipped_at, 0.0) if attempt.flipped_at else None

    def _outcome(self, attempt: Attempt, outcome: str) -> Outcome:
        now = self._ledger.wall()
        in_trial = self._seconds_in_trial(attempt, now)
        return Outcome(
            attempt=attempt.id,
            outcome=outcome,
            release=attempt.release,
            from_release=attempt.from_release,
            trigger=attempt.trigger,
            reason=attempt.reason,
            sentence=attempt.sentence,
            ended=now,
            flipped=attempt.flipped_at or None,
            cause=attempt.cause,
            wire_bytes=self._notes.wire_bytes,
            full_bytes=self._notes.full_bytes,
            seconds_in_trial=in_trial if self._reverted_in_s is None else self._reverted_in_s,
            evidence=attempt.evidence,
        )

    def cancel(self) -> None:
        """The guardian stops: what is left is taken up at the next start."""
        if self._timer:
            self._timer.cancel()
        if self._activation:
            self._activation.cancel()
