"""Who is silent, and since when. Pure: times come in, Unix seconds.

An agent is expected to say something within the policy's silent_after_s of
the last time. Silence is evidence: a machine that an update took down says
nothing either.
"""

from __future__ import annotations


def is_silent(*, seen_at: float, now: float, silent_after_s: float) -> bool:
    """Whether an agent has been quiet for longer than it may."""
    return now - seen_at > silent_after_s


def silent_since(*, seen_at: float, now: float, silent_after_s: float) -> float | None:
    """When an agent's silence began to count; None while it doesn't."""
    if is_silent(seen_at=seen_at, now=now, silent_after_s=silent_after_s):
        return seen_at + silent_after_s
    return None


def seen_before(*, now: float, silent_after_s: float) -> float:
    """Agents that were last seen before this time are silent."""
    return now - silent_after_s
