"""When the mirror syncs next.

At every start, after each interval, sooner after a failure, and at once when
somebody asks. A failure is repeated after a minute, then after twice as long
each time, never later than the interval.

Pure.
"""

from __future__ import annotations

FAILED_AGAIN_S = 60.0
DOUBLINGS_MAX = 16


def delay_s(*, interval_s: float, failures: int) -> float:
    """Seconds from the end of a sync to the next; failures counts those in a row."""
    if not failures:
        return interval_s
    return min(interval_s, FAILED_AGAIN_S * 2.0 ** min(failures - 1, DOUBLINGS_MAX))
