"""Facts of a healthy machine for the status document; tests change what they are about."""

from __future__ import annotations

from typing import Any

import msgspec

from agent.channel import SlotReport
from agent.guardian import verdict
from agent.guardian.attempt import LastCheck, LastError
from agent.guardian.lifecycle import State, Status
from agent.guardian.quarantine import Entry
from agent.guardian.status import Facts
from agent.guardian.verdict import Baseline, Policy, Watching
from agent.slots.record import Attempt, BootRecord, Phase, SlotContent
from agent.slots.seal import SCHEMA, Seal
from feed.manifest import Activation, Component, Form, HealthPolicy, Kind
from tests.support.trials import Look, sample, samples

NOW = 1_800_000_000.0
A = SlotContent(release="r171", digest="1" * 64, seal="2" * 64)
B = SlotContent(release="r173", digest="3" * 64, seal="4" * 64)
ATTEMPT = Attempt(
    id="0001",
    release="r173",
    from_release="r171",
    changed={"virus-pattern": "5" * 64},
    trigger="schedule",
    flipped_at=NOW - 30,
)
RECORD = BootRecord(active="b", slots={"a": A, "b": B})
TRIAL = BootRecord(
    phase=Phase.TRIAL,
    active="b",
    slots={"a": A, "b": B},
    tries_left=1,
    healthy_s=12.5,
    attempt=ATTEMPT,
)
ENTRY = Entry(
    id="abc123",
    changed={"virus-pattern": "6" * 64},
    release="r175",
    reason="cpu_pinned",
    sentence="it burned a core",
    since=NOW - 100,
    until=NOW + 100,
    attempt="0002",
)
CHECK = LastCheck(
    at=NOW - 60, source="https://feed.example", decision="current", sentence="it is current"
)
ERROR = LastError(at=NOW - 10, code="source_unreachable", sentence="nobody answers")


def seal(release: str) -> Seal:
    """The seal of a release with one component."""
    return Seal(
        schema=SCHEMA,
        release=release,
        components=(
            Component(
                name="virus-pattern",
                kind=Kind.PATTERN,
                version="173",
                form=Form.FILE,
                filename="pattern.dat",
                length=1_234_567,
                digest="7" * 64,
            ),
        ),
        activation=Activation(),
        health=HealthPolicy(),
        files={},
    )


def status(state: State, *, reason: str = "current", sentence: str = "it is current") -> Status:
    """A published state."""
    return Status(state=state, reason=reason, sentence=sentence, since=NOW - 60)


def facts(**changes: Any) -> Facts:
    """A machine that runs r173, current and healthy, but for `changes`."""
    usual: dict[str, Any] = {
        "now": NOW,
        "host_id": "host-1",
        "region": "global",
        "agent_version": "0.1.0",
        "pid": 100,
        "fetcher_pid": 101,
        "started": NOW - 86400,
        "record": RECORD,
        "status": status(State.IDLE),
        "seals": {"a": seal("r171"), "b": seal("r173")},
        "reports": {name: report(name) for name in ("a", "b")},
        "quarantine": (),
        "last_check": CHECK,
        "last_error": None,
        "next_check": NOW + 3000,
        "interval_s": 3600.0,
        "sample": sample(Look(), 1000.0),
        "watching": None,
        "policy": Policy(),
        "baseline": Baseline(),
        "verifying": False,
    }
    known = {field.name for field in msgspec.structs.fields(Facts)}
    return Facts(**{name: value for name, value in (usual | changes).items() if name in known})


def report(name: str, *problems: str, repaired: tuple[str, ...] = ()) -> SlotReport:
    """What verifying a slot found."""
    content = {"a": A, "b": B}[name]
    return SlotReport(
        slot="a" if name == "a" else "b",
        known=content.seal,
        content=content,
        problems=problems,
        damaged=("virus-pattern",) if problems else (),
        repaired=repaired,
    )


def on_trial(*looks: Look, **changes: Any) -> Facts:
    """The same machine with r173 on probation, after `looks` of a second each."""
    policy = Policy(warmup_s=2.0, window_s=10.0, probation_s=60.0, probation_max_s=600.0)
    baseline = verdict.measure(tuple(samples([Look()] * 5, 1000.0)))
    watching: Watching = verdict.begin(baseline)
    for number, look in enumerate(looks or [Look()] * 10):
        watching = verdict.observe(
            watching, sample(look, 2000.0 + number), policy, baseline, activation_done_at=2000.0
        )
    on = status(State.TRIAL, reason="on_probation", sentence="r173 is on probation")
    return facts(
        **{
            "record": TRIAL,
            "status": on,
            "watching": watching,
            "policy": policy,
            "baseline": baseline,
            "sample": watching.last,
        }
        | changes
    )
