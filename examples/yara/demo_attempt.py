"""Following an update while it happens, as the agent and the engine tell of it.

What is asked: the agent's status socket, which everybody may read, a few times
a second, and the engine's own health socket, once a second.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import engine
from demo_screen import GREEN, RED, Screen, bar, trend
from demo_stage import Stage, StepError

from agent.ctl import client
from agent.layout import Layout

POLL_S = 0.2
SAMPLE_S = 1.0  # the agent looks at its engine once a second
ATTEMPT_PATIENCE_S = 90.0
PRESSURE = "machine_pressure"  # other programs keep the machine full: nothing is judged
PRESSURE_PATIENCE_S = 180.0
CROWDED = "Other programs kept this machine full; run the demo again when it is calmer"
ENGINE_PATIENCE_S = 30.0
ENGINE_ANSWER_S = 0.5  # while following; it is asked again a second later
ENGINE_PACE_S = 1.0
CALM_SHARE = 0.35  # of a core; good rules use 0.02
CALM_ROUNDS = 2
BUSY = {"checking", "downloading", "staging", "waiting", "trial", "reverting"}

Document = dict[str, Any]


@dataclass
class Attempt:
    """What was seen of one attempt."""

    shares: list[float] = field(default_factory=list)  # of a core, one a second, since the flip
    rules: set[str] = field(default_factory=set)  # that the engine said were at work
    status: Document = field(default_factory=dict)  # at its end
    outcome: Document = field(default_factory=dict)  # its line in the history
    calm: Document = field(default_factory=dict)  # the engine's answer, once calm again
    calm_at: float = 0.0  # Unix seconds


class Observer:
    """Asks the agent behind `places` and the engine behind `health_socket`."""

    def __init__(self, stage: Stage, screen: Screen, places: Layout, health_socket: Path) -> None:
        self._stage = stage
        self._screen = screen
        self._places = places
        self._health_socket = health_socket

    def status(self) -> Document:
        """The agent's status document."""
        return client.status(self._places)

    def engine(self, *, timeout_s: float = engine.ANSWER_TIMEOUT_S) -> Document:
        """The engine's health."""
        return engine.ask(self._health_socket, timeout_s=timeout_s)

    def history(self) -> list[Document]:
        """The agent's attempts that ended, oldest first."""
        found: list[Document] = client.ask(
            self._places.status_socket, {"do": "history", "count": 100}
        )
        return found

    def is_at_work(self) -> bool:
        """Whether an attempt goes on."""
        return not _is_over(self.status()["state"])

    def follow(self) -> Attempt:
        """Show the attempt in progress until it ends.

        Raises StepError: it doesn't end, or a process does.
        """
        attempt = Attempt()
        began = sampled = time.monotonic()
        patience_until = began + ATTEMPT_PATIENCE_S
        while True:
            self._stage.check_alive()
            status, now = self.status(), time.monotonic()
            state = status["state"]
            if state["name"] == "trial" and now - sampled >= SAMPLE_S:
                sampled = now
                self._look(status, attempt)
            self._draw(status, attempt)
            if _is_over(state):
                return self._ended(attempt, status)
            if state["reason"] == PRESSURE:
                patience_until = began + PRESSURE_PATIENCE_S
            if now > patience_until:
                pressed = patience_until == began + PRESSURE_PATIENCE_S
                advice = f". {CROWDED}" if pressed else ""
                raise StepError(f"not over after {now - began:.0f} s; {words(state)}{advice}")
            time.sleep(POLL_S)

    def _ended(self, attempt: Attempt, status: Document) -> Attempt:
        self._screen.end_live()
        attempt.status = status
        attempt.outcome = next(iter(self.history()[-1:]), {})
        return attempt

    def _look(self, status: Document, attempt: Attempt) -> None:
        attempt.shares += [item["cpu_share"] for item in status["processes"]]
        try:
            attempt.rules.add(str(self.engine(timeout_s=ENGINE_ANSWER_S)["rules"]))
        except (OSError, ValueError):
            return  # it loads rules, or is in the middle of a slow file

    def _draw(self, status: Document, attempt: Attempt) -> None:
        state = status["state"]
        name, done = state["name"], state.get("progress") or {}
        if name == "trial":
            self._draw_trial(state, attempt)
            return
        text = state["sentence"]
        if done.get("total"):
            text += f"  {bar(done['done'] / done['total'])} {done['done']:,} bytes"
        elif name == "waiting":
            text += f"  ({max(status['now'] - state['since'], 0):.0f} s)"
        colour = {"committed": GREEN, "reverted": RED, "failed": RED}.get(name, "")
        self._screen.live(name, f"{name:<11} {text}", colour=colour)

    def _draw_trial(self, state: Document, attempt: Attempt) -> None:
        share = attempt.shares[-1] if attempt.shares else 0.0
        progress = state["progress"]
        why = state["sentence"] if state["reason"] == PRESSURE else state["reason"]
        self._screen.live(
            f"trial {state['reason']}",
            f"{'trial':<11} engine {share:4.2f} of a core {trend(attempt.shares):<16}  healthy "
            f"{progress['done']:.0f} of {progress['total']:.0f} s  {why}",
            level=share,
            colour=RED if state["reason"] == "cpu_pinned" else "",
        )

    def wait_for_calm(self, attempt: Attempt, version: int) -> None:
        """Until the engine itself says that it runs `version` and has little to do.

        Raises StepError.
        """
        answers: list[Document] = [{}]

        def is_calm() -> bool:
            said = self.engine()
            answers[0] = said
            runs = said["rules"] == str(version) and said["rounds"] >= CALM_ROUNDS
            return runs and share_of_a_core(said) < CALM_SHARE

        self._screen.live(
            "engine", f"{'engine':<11} takes the rules of {version}, then scans twice"
        )
        self._stage.wait_until(
            is_calm,
            what=f"the engine is calm with the rules of {version}",
            seconds=ENGINE_PATIENCE_S,
            found=lambda: f"its last answer is {answers[0]}",
        )
        self._screen.end_live()
        attempt.calm, attempt.calm_at = answers[0], time.time()


def words(state: Document) -> str:
    """What the agent says of itself, to quote it."""
    return f"the agent says: {state['name']} [{state['reason']}] {state['sentence']}"


def share_of_a_core(health: Document) -> float:
    """What the engine used in its last round and in the rest until the next one."""
    return float(health["last_round_cpu_s"] / max(ENGINE_PACE_S, health["last_round_s"]))


def _is_over(state: Document) -> bool:
    return state["name"] not in BUSY and state["reason"] != "started"
