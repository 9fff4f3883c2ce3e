"""When the link tries again, checks in and answers: spread, so that a fleet doesn't march.

Pure: draws are uniform in [0, 1), times are seconds.
"""

from __future__ import annotations

RECONNECT_FIRST_S = 5.0  # a server that was started again is met by its whole fleet
RECONNECT_MAX_S = 300.0
DOUBLINGS_MAX = 16
REFUSED_S = 600.0  # a credential that isn't taken is rarely taken a minute later
RETRY_AFTER_MAX_S = 900.0
STEADY_S = 60.0  # a connection that lasted so long has worked
CHECK_IN_JITTER = 0.1
CHECK_IN_MIN_S, CHECK_IN_MAX_S = 10.0, 86400.0
ANSWER_GAP_S = 5.0  # between two answers to notifications, whatever a server sends


def delay_to_retry(failures: int, *, draw: float, retry_after_s: float | None = None) -> float:
    """Seconds until the next try after `failures` (1 or more) in a row.

    The first comes within seconds, evenly spread; each later one waits up to
    twice as long, at least half of that. A server's own word is the least.
    """
    most = min(RECONNECT_FIRST_S * 2 ** min(failures - 1, DOUBLINGS_MAX), RECONNECT_MAX_S)
    delay = most * draw if failures <= 1 else most * (0.5 + draw / 2)
    asked = min(max(retry_after_s or 0.0, 0.0), RETRY_AFTER_MAX_S)
    return asked * (1 + draw * CHECK_IN_JITTER) if asked > delay else delay


def delay_after_refusal(*, draw: float) -> float:
    """Seconds until a refused credential is shown again."""
    return REFUSED_S * (0.75 + draw / 2)


def delay_to_check_in(check_in_s: float, *, draw: float) -> float:
    """Seconds until the next check-in, a tenth more or less than the server asks for."""
    asked = min(max(check_in_s, CHECK_IN_MIN_S), CHECK_IN_MAX_S)
    return asked * (1 + CHECK_IN_JITTER * (2 * draw - 1))


def failures_after(failures: int, *, lasted_s: float) -> int:
    """Failures in a row, after a connection that lasted so long has ended, too."""
    return 1 if lasted_s >= STEADY_S else failures + 1


def answer_at(now: float, last_answer: float | None) -> float:
    """When a notification that came now is answered."""
    return now if last_answer is None else max(now, last_answer + ANSWER_GAP_S)
