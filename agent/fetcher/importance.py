"""Which reports are sent first, and which go when there is no room.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

# What a rollout is stopped for comes first; that all went well shows in check-ins too.
ORDER = ("committed", "failed", "held", "reverted")


class Waiting(NamedTuple):
    """A report that waits to be sent; size in bytes, ended in Unix seconds."""

    attempt: str
    outcome: str
    ended: float
    size: int

    @property
    def importance(self) -> int:
        """The more, the longer it is kept."""
        return ORDER.index(self.outcome) if self.outcome in ORDER else len(ORDER)


def to_evict(waiting: Iterable[Waiting], *, count_max: int, bytes_max: int) -> tuple[Waiting, ...]:
    """Those that must go so that the rest fits: the least important, of these the oldest."""
    held = sorted(waiting, key=lambda item: (item.importance, item.ended, item.attempt))
    count, size = len(held), sum(item.size for item in held)
    gone = []
    for item in held:
        if count <= count_max and size <= bytes_max:
            break
        gone.append(item)
        count, size = count - 1, size - item.size
    return tuple(gone)


def batch(waiting: Iterable[Waiting], *, count_max: int, bytes_max: int) -> tuple[Waiting, ...]:
    """What goes in the next request: the most important, of these the oldest; at least one."""
    chosen: list[Waiting] = []
    size = 0
    for item in sorted(waiting, key=lambda item: (-item.importance, item.ended, item.attempt)):
        if chosen and (len(chosen) >= count_max or size + item.size > bytes_max):
            break
        chosen.append(item)
        size += item.size
    return tuple(chosen)
