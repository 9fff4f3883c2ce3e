"""When a failed attempt is worth another one, and how long to wait before it.

An answer's Retry-After is obeyed up to a cap. A longer one ends the trying:
the caller reads it in the error and comes back then.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

import tenacity

from feed.source import SourceError

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 20.0
PROGRESS_BYTES = 64 << 10  # less than this isn't progress: a drip must not buy attempts

T = TypeVar("T")


def retry(
    attempt: Callable[[], T],
    *,
    attempts: int,
    retry_after_max_s: float,
    sleep: Callable[[float], None],
    progress: Callable[[], int] = lambda: 0,
) -> T:
    """The result of `attempt`, repeated while it fails in ways that pass.

    progress, in bytes, is asked after each failure: an attempt that moved it
    by 64 KiB starts the count of attempts anew.

    Raises SourceError: the last failure, and how often it was tried.
    """
    stop = _Patience(attempts, progress)
    retrying = tenacity.Retrying(
        sleep=sleep,
        stop=stop,
        wait=_wait_s,
        retry=tenacity.retry_if_exception(
            lambda error: _is_worth_another(error, retry_after_max_s)
        ),
        reraise=True,
    )
    try:
        return retrying(attempt)
    except SourceError as error:
        if stop.in_vain > 1:
            error.args = (f"{error}; gave up after {stop.in_vain} attempts in a row",)
        raise


def _is_worth_another(error: BaseException, retry_after_max_s: float) -> bool:
    if not isinstance(error, SourceError) or not error.temporary:
        return False
    return (error.retry_after_s or 0.0) <= retry_after_max_s


def _wait_s(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after_s if isinstance(error, SourceError) else None
    return max(backoff_s(state.attempt_number, random.random()), asked or 0.0)  # noqa: S311


class _Patience:
    """Stops after so many attempts in a row without progress."""

    def __init__(self, attempts: int, progress: Callable[[], int]) -> None:
        self._attempts = attempts
        self._progress = progress
        self._reached = progress()
        self.in_vain = 0

    def __call__(self, _state: tenacity.RetryCallState) -> bool:
        reached = self._progress()
        if reached >= self._reached + PROGRESS_BYTES:
            self.in_vain = 0
        self._reached = reached
        self.in_vain += 1
        return self.in_vain >= self._attempts


def backoff_s(attempt: int, chance: float) -> float:
    """The pause after the given attempt, from 1: doubling, then spread by `chance` in [0, 1)."""
    longest = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(attempt - 1, 16))
    return longest * (0.5 + chance / 2)
