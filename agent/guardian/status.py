"""The status document: everything `agentctl status --json` shows, in one value.

Pure: the guardian's facts come in, a document goes out. `standing` says what a
monitoring system should think of it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import msgspec

from agent.channel import SlotReport
from agent.guardian.attempt import LastCheck, LastError
from agent.guardian.lifecycle import State, Status
from agent.guardian.quarantine import Entry
from agent.guardian.verdict import Baseline, Policy, Reason, Sample, Watching, gates
from agent.slots.record import BootRecord, Phase, SlotName
from agent.slots.seal import Seal
from feed.rollout import Decision

SCHEMA = 1
LATE_FACTOR = 3  # check intervals without a successful check before the machine is late
HELD = {
    Decision.HALTED,
    Decision.WAITING_FOR_PHASE,
    Decision.QUARANTINED,
    Decision.INCOMPATIBLE,
}


class Standing(IntEnum):
    """Exit codes of monitoring plugins."""

    CURRENT = 0
    LATE = 1
    AT_RISK = 2
    UNKNOWN = 3


class ProgramFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Which copy of the agent's program fetches: a slot's, or the package's own (slot None).

    problem says why the active slot's isn't used, "" when it is or there is none.
    """

    component: str | None = None
    slot: SlotName | None = None
    version: str = ""
    problem: str = ""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the guardian knows at `now` (Unix seconds)."""

    now: float
    host_id: str
    region: str
    agent_version: str
    pid: int
    fetcher_pid: int | None
    fetcher_version: str = ""
    program: ProgramFacts = ProgramFacts()
    started: float
    record: BootRecord
    status: Status
    seals: dict[SlotName, Seal]
    reports: dict[SlotName, SlotReport]
    quarantine: tuple[Entry, ...]
    last_check: LastCheck | None
    last_error: LastError | None
    next_check: float | None
    interval_s: float
    sample: Sample | None
    watching: Watching | None
    policy: Policy
    baseline: Baseline
    verifying: bool
    traits: dict[str, str] = {}
    server: dict[str, Any] | None = None


def document(facts: Facts) -> dict[str, Any]:
    """The status document (docs/agentctl.md)."""
    code, sentence = standing(facts)
    return {
        "schema": SCHEMA,
        "host_id": facts.host_id,
        "region": facts.region,
        "traits": facts.traits,
        "agent_version": facts.agent_version,
        "now": facts.now,
        "standing": {"code": int(code), "word": code.name.lower(), "sentence": sentence},
        "active_slot": facts.record.active,
        "release": facts.record.content.release if facts.record.content else None,
        "state": _state(facts),
        "components": _components(facts),
        "slots": {name: _slot(facts, name) for name in ("a", "b")},
        "trial": _trial(facts),
        "check": _check(facts),
        "quarantine": [
            msgspec.to_builtins(item) for item in facts.quarantine if item.until > facts.now
        ],
        "processes": _processes(facts),
        "verifying": facts.verifying,
        "repaired": [path for item in facts.reports.values() for path in item.repaired],
        "guardian": {"pid": facts.pid, "uptime_s": max(facts.now - facts.started, 0.0)},
        "fetcher": {
            "pid": facts.fetcher_pid,
            "running": facts.fetcher_pid is not None,
            "version": facts.fetcher_version,
        },
        "program": msgspec.to_builtins(facts.program),
        "held": msgspec.to_builtins(facts.record.held),
        "server": facts.server,
    }


def standing(facts: Facts) -> tuple[Standing, str]:
    """What a monitoring system should think, with the reason."""
    risk = _risk(facts)
    if risk:
        return Standing.AT_RISK, risk
    late = _late(facts)
    if late:
        return Standing.LATE, late
    content = facts.record.content
    if content and facts.record.phase is Phase.TRIAL:
        return Standing.CURRENT, f"{content.release} is on probation and healthy so far"
    return Standing.CURRENT, f"runs {content.release if content else 'nothing'}, healthy"


def _risk(facts: Facts) -> str | None:
    active = facts.record.active
    if active is None:
        return "no release is installed"
    report = facts.reports.get(active)
    if facts.record.held:
        return f"both slots are bad, {active} is the less bad one: {facts.record.held.sentence}"
    if report and not report.intact:
        return f"slot {active} is damaged: {report.problems[0] if report.problems else 'no seal'}"
    if active not in facts.seals:
        return f"the seal of slot {active} can't be read"
    missing = [
        item.name
        for item in (facts.sample.processes if facts.sample else ())
        if item.required and not item.alive
    ]
    if missing and facts.record.phase is Phase.COMMITTED:
        return f"not running: {', '.join(missing)}"
    return None


def _late(facts: Facts) -> str | None:
    if facts.watching and facts.watching.observed_s >= facts.policy.probation_max_s:
        return f"the trial is overdue: {facts.status.sentence}"
    if facts.status.reason == Reason.PROBATION_OVERDUE:
        return facts.status.sentence
    check, error = facts.last_check, facts.last_error
    if check and check.decision in HELD:
        return check.sentence
    if _is_quiet(facts):
        quiet_s = facts.now - _worked_at(facts)
        trouble = error.sentence if error else "the fetcher doesn't check"
        return f"no successful check for {quiet_s:.0f} s: {trouble}"
    if facts.status.state is State.FAILED:
        return facts.status.sentence
    if facts.program.problem:
        return f"{facts.program.problem}; the package's own {facts.agent_version} does its work"
    return None


def _is_quiet(facts: Facts) -> bool:
    """Whether checks that should have come for a while didn't, or failed."""
    long = LATE_FACTOR * facts.interval_s
    if facts.now - _worked_at(facts) <= long:
        return False
    is_planned = facts.next_check is not None and facts.next_check + long > facts.now
    return facts.last_error is not None or not is_planned


def _worked_at(facts: Facts) -> float:
    """When a check last worked, or the guardian started if none has since."""
    last = facts.last_check
    return max(last.last_worked_at if last else 0.0, min(facts.started, facts.now))


def _state(facts: Facts) -> dict[str, Any]:
    status = facts.status
    unit = {State.DOWNLOADING: "bytes", State.TRIAL: "healthy seconds"}.get(status.state)
    return {
        "name": status.state,
        "reason": status.reason,
        "sentence": status.sentence,
        "since": status.since,
        "release": status.release,
        "progress": {"done": status.done, "total": status.total, "unit": unit} if unit else None,
    }


def _components(facts: Facts) -> list[dict[str, Any]]:
    active = facts.record.active
    seal = facts.seals.get(active) if active else None
    report = facts.reports.get(active) if active else None
    damaged = report.damaged if report else ()
    return [
        {
            "name": item.name,
            "kind": item.kind,
            "version": item.version,
            "digest": item.digest,
            "bytes": item.length,
            "intact": item.name not in damaged,
        }
        for item in (seal.components if seal else ())
    ]


def _slot(facts: Facts, name: SlotName) -> dict[str, Any]:
    held = facts.record.slots.get(name)
    report = facts.reports.get(name)
    on_trial = facts.record.active == name and facts.record.phase is Phase.TRIAL
    return {
        "active": facts.record.active == name,
        "release": held.release if held else None,
        "digest": held.digest if held else None,
        "sealed": held is not None,
        "on_trial": on_trial,
        "tries_left": facts.record.tries_left if on_trial else None,
        "problems": list(report.problems) if report and held else [],
    }


def _trial(facts: Facts) -> dict[str, Any] | None:
    watching, attempt = facts.watching, facts.record.attempt
    if attempt is None or facts.record.phase is not Phase.TRIAL:
        return None
    found = gates(watching, facts.policy, facts.baseline) if watching else []
    return {
        "attempt": attempt.id,
        "release": attempt.release,
        "from_release": attempt.from_release,
        "flipped": attempt.flipped_at,
        "tries_left": facts.record.tries_left,
        "healthy_s": watching.healthy_s if watching else facts.record.healthy_s,
        "needed_s": facts.policy.probation_s,
        "gates": [msgspec.to_builtins(gate) for gate in found],
    }


def _check(facts: Facts) -> dict[str, Any]:
    return {
        "last": msgspec.to_builtins(facts.last_check) if facts.last_check else None,
        "next": facts.next_check,
        "last_error": msgspec.to_builtins(facts.last_error) if facts.last_error else None,
    }


def _processes(facts: Facts) -> list[dict[str, Any]]:
    return [
        {
            "name": item.name,
            "pid": item.root.pid if item.root else None,
            "alive": item.alive,
            "rss_bytes": item.rss_bytes,
            "cpu_share": item.cpu_share,
        }
        for item in (facts.sample.processes if facts.sample else ())
    ]
