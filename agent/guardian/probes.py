"""When to ask which engine, and what to make of answers that don't come.

A probe is started and then polled; nothing here waits. Its time is limited and
what it hears is bounded. An answer that is there when the guardian at last
looks counts, however late the guardian itself was. One that the machine had no
process to ask for is told from one that the engine owes.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.config import Probe, Watch
from agent.guardian.activation import STARVED
from agent.guardian.commands import Commands
from agent.guardian.questions import (
    Address,
    CommandQuestion,
    ConnectQuestion,
    DialogueQuestion,
    HttpQuestion,
    Question,
    addresses,
    parse_url,
    unix_address,
)
from agent.guardian.samples import ProbeResult

POLL_FIRST_S = 0.005
POLL_LATEST_S = 0.1
POLLS_PER_AGE = 4  # an answer is found a quarter late, or a tenth of a second


class ProbeError(ValueError):
    """A probe that can't be asked as it is configured."""


def ask(probe: Probe, commands: Commands) -> Question:
    """Start one probe.

    Raises ProbeError: it can never be asked. OSError: it can't be now.
    """
    try:
        if probe.command is not None:
            return CommandQuestion(probe.command, commands)
        if probe.unix is not None:
            return _connection(probe, (unix_address(probe.unix),))
        if probe.tcp is not None:
            return _connection(probe, addresses(probe.tcp))
        url = parse_url(probe.http or "")
    except ValueError as error:
        raise ProbeError(str(error)) from error
    return HttpQuestion(url)


def _connection(probe: Probe, candidates: tuple[Address, ...]) -> Question:
    if probe.expect is None:
        return ConnectQuestion(candidates)
    return DialogueQuestion(candidates, send=probe.send or "", expect=probe.expect)


class _Schedule:
    """The probe of one watch."""

    def __init__(self, name: str, probe: Probe, commands: Commands) -> None:
        self.name = name
        self.problem = ""
        self.result: ProbeResult | None = None
        self._probe = probe
        self._commands = commands
        self._question: Question | None = None
        self._started_at = 0.0
        self._next_at: float | None = None

    def poll(self, now: float) -> float:
        """Do what is due; returns when to be polled again, as a monotonic time."""
        if self._question is None:
            if self._next_at is not None and now < self._next_at:
                return self._next_at
            self._begin(now)
        self._hear(now)
        if self._question is None:
            return now + self._probe.interval_s if self._next_at is None else self._next_at
        age = now - self._started_at
        return now + max(POLL_FIRST_S, min(POLL_LATEST_S, age / POLLS_PER_AGE))

    def _begin(self, now: float) -> None:
        self._started_at = now
        self._next_at = now + self._probe.interval_s
        try:
            self._question = ask(self._probe, self._commands)
        except ProbeError as error:
            self.problem = str(error)
        except OSError as error:
            starved = error.errno in STARVED
            self._finish(now, ok=False, detail=error.strerror or str(error), starved=starved)

    def _hear(self, now: float) -> None:
        if self._question is None:
            return
        answer = self._question.poll()
        if answer:
            self._finish(now, ok=answer[0], detail=answer[1])
        elif now - self._started_at >= self._probe.timeout_s:
            self._finish(now, ok=False, detail=f"no answer in {self._probe.timeout_s:g} s")

    def _finish(self, now: float, *, ok: bool, detail: str, starved: bool = False) -> None:
        elapsed_s = max(0.0, now - self._started_at)
        self.result = ProbeResult(
            name=self.name, ok=ok, elapsed_s=elapsed_s, detail=detail, starved=starved
        )
        self.stop()

    def stop(self) -> None:
        if self._question:
            self._question.close()
            self._question = None

    def restart(self) -> None:
        self.stop()
        self._next_at = self.result = None


class Probes:
    """The probes of all watches. Silent until start()."""

    def __init__(self, watches: Iterable[Watch], commands: Commands) -> None:
        self._schedules = {
            item.name: _Schedule(item.name, item.probe, commands) for item in watches if item.probe
        }
        self._on = False

    def start(self) -> None:
        """Ask every engine at the next poll, then at its interval."""
        if not self._on:
            for item in self._schedules.values():
                item.restart()
        self._on = True

    def stop(self) -> None:
        """Give up what is being asked, and ask no more."""
        self._on = False
        for item in self._schedules.values():
            item.stop()

    def poll(self, now: float) -> float | None:
        """Do what is due; seconds until the next poll is worth it, None for never."""
        if not self._on or not self._schedules:
            return None
        return max(0.0, min(item.poll(now) for item in self._schedules.values()) - now)

    def take(self) -> tuple[ProbeResult, ...]:
        """The latest answer of each watch since the last take."""
        results = []
        for item in self._schedules.values():
            if item.result:
                results.append(item.result)
                item.result = None
        return tuple(results)

    def can_ask(self, name: str) -> bool:
        """Whether a watch has a probe that can be asked at all."""
        item = self._schedules.get(name)
        return item is not None and not item.problem

    def problem(self, name: str) -> str:
        """Why a probe can't be asked; "" if it can."""
        item = self._schedules.get(name)
        return item.problem if item else ""
