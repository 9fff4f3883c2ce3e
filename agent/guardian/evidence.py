"""What a verdict was based on, as one JSON document for people and reports.

Pure: it is written by main. Bounded: at most 120 samples from before the flip
and 120 from after it, whatever the trial's length.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agent.guardian.baseline import Baseline
from agent.guardian.gates import gates
from agent.guardian.policy import Policy
from agent.guardian.verdict import Verdict
from agent.guardian.watching import Watching

SCHEMA = 1


def build(
    baseline: Baseline, watching: Watching, policy: Policy, verdict: Verdict
) -> dict[str, Any]:
    """The document: plain dicts, lists, strings and numbers."""
    last = watching.last
    document = {
        "schema": SCHEMA,
        "outcome": verdict.outcome,
        "reason": verdict.reason,
        "sentence": verdict.sentence,
        "culprit": verdict.culprit,
        "numbers": verdict.numbers,
        "thresholds": policy,
        "gates": gates(watching, policy, baseline),
        "observed_s": round(watching.observed_s, 3),
        "healthy_s": round(watching.healthy_s, 3),
        "before": {
            "observed_s": round(baseline.observed_s, 3),
            "watches": baseline.watches,
            "samples": baseline.trace.points,
        },
        "after": {
            "crashes": watching.carried.crashes,
            "machine": last.machine if last else None,
            "top_processes": last.machine.top if last else (),
            "samples": watching.trace.points,
        },
    }
    plain: dict[str, Any] = msgspec.to_builtins(document)
    return plain
