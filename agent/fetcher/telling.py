"""What is told to the server: this machine's facts, and how its attempts ended.

Pure: the guardian's words come in, the messages of feed.messages go out, cut to
what a server takes.
"""

from __future__ import annotations

from typing import Any, get_args

import msgspec

from agent.channel import Situation
from agent.guardian.history import Outcome
from feed import messages
from feed.messages import EVIDENCE_BYTES_MAX, Facts, Report

TEXT_CHARS_MAX = 2000  # messages.Text
WORD_CHARS_MAX = 64  # messages.Word
NAME_CHARS_MAX = 255  # messages.Name
OUTCOMES = frozenset(get_args(messages.Outcome))
_TRACES = ("before", "after")


def facts(situation: Situation, *, name: str) -> Facts:
    """name: the machine's own, for people."""
    return Facts(
        host_id=situation.host_id[:NAME_CHARS_MAX],
        name=(name or situation.host_id)[:NAME_CHARS_MAX],
        platform=situation.platform[:WORD_CHARS_MAX],
        agent_version=situation.agent_version,
        region=situation.region,
        traits=situation.traits,
        active_release=situation.active_release,
        components={
            name: version[:WORD_CHARS_MAX] for name, version in situation.components.items()
        },
        state=situation.state[:WORD_CHARS_MAX],
        reason=situation.reason[:WORD_CHARS_MAX],
    )


def report(outcome: Outcome, evidence: bytes | None) -> Report | None:
    """None: an outcome that the server has no word for."""
    if outcome.outcome not in OUTCOMES:
        return None
    fitting = fitted(evidence) if evidence else None
    return Report(
        attempt=outcome.attempt[:WORD_CHARS_MAX],
        outcome=outcome.outcome,  # type: ignore[arg-type]
        release=outcome.release[:WORD_CHARS_MAX],
        from_release=outcome.from_release,
        trigger=outcome.trigger[:WORD_CHARS_MAX],
        reason=outcome.reason[:WORD_CHARS_MAX],
        sentence=outcome.sentence[:TEXT_CHARS_MAX],
        cause=outcome.cause,
        ended=outcome.ended,
        seconds_in_trial=outcome.seconds_in_trial,
        wire_bytes=outcome.wire_bytes,
        full_bytes=outcome.full_bytes,
        evidence=msgspec.Raw(fitting or b"null"),
    )


def fitted(evidence: bytes, *, limit: int = EVIDENCE_BYTES_MAX) -> bytes | None:
    """An evidence document in at most `limit` bytes: with fewer samples if need be.

    None: it can't be told in so few, or is no document.
    """
    try:
        document = msgspec.json.decode(evidence)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    data = msgspec.json.encode(document)
    while len(data) > limit and _thinned(document):
        data = msgspec.json.encode(document)
    return data if len(data) <= limit else None


def _thinned(document: dict[str, Any]) -> bool:
    """Leave every other sample out, the oldest first; False when there was none."""
    traces = [document[name] for name in _TRACES if isinstance(document.get(name), dict)]
    lists = [trace["samples"] for trace in traces if isinstance(trace.get("samples"), list)]
    had_any = any(lists)
    for samples in lists:
        del samples[::2]
    return had_any
