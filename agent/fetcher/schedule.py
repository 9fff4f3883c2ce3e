"""When the next check is due: the interval, spread so that machines don't come together.

Pure.
"""

from __future__ import annotations

START_SPREAD_MAX_S = 60.0  # after a power cut a whole site starts at once


def delay_at_start(*, jitter_s: float, draw: float) -> float:
    """Seconds until the check at start-up; draw is uniform in [0, 1)."""
    return min(jitter_s, START_SPREAD_MAX_S) * draw


def delay_to_next(*, interval_s: float, jitter_s: float, draw: float) -> float:
    """Seconds until the next check; draw is uniform in [0, 1)."""
    return interval_s + jitter_s * draw
