"""How fast bytes may come, and how slow.

Pure: amounts and times come in, waiting times and judgements go out.

 * A Bucket lets the bandwidth through on average and half a second of it at
   once; what was taken too early is waited for afterwards.
 * A Floor judges time spent waiting for the network only, so a bandwidth
   limit of our own never makes a source look slow.
"""

from __future__ import annotations

from dataclasses import dataclass

BURST_S = 0.5


@dataclass(frozen=True)
class Bucket:
    """A limit's state at monotonic time `at_s`; `level` is in bytes, or whatever is counted.

    burst is how much may come at once.
    """

    bytes_per_s: float
    level: float
    at_s: float
    burst: float

    @classmethod
    def full(cls, bytes_per_s: float, *, now_s: float, burst: float | None = None) -> Bucket:
        """A bucket nobody has taken from yet."""
        most = bytes_per_s * BURST_S if burst is None else burst
        return cls(bytes_per_s, most, now_s, most)

    def take(self, amount: int, *, now_s: float) -> tuple[Bucket, float]:
        """Take `amount` bytes; returns the next state and the seconds to wait."""
        refill = max(0.0, now_s - self.at_s) * self.bytes_per_s
        level = min(self.level + refill, self.burst) - amount
        after = Bucket(self.bytes_per_s, level, now_s, self.burst)
        return after, max(0.0, -level / self.bytes_per_s)


@dataclass(frozen=True)
class Floor:
    """The slowest a source may answer: `bytes_per_s` over each `window_s`."""

    bytes_per_s: float
    window_s: float
    waited_s: float = 0.0
    received: int = 0

    def add(self, amount: int, *, waited_s: float) -> Floor:
        """The state after `amount` bytes that took `waited_s`; full windows start anew."""
        if self.waited_s >= self.window_s and not self.is_broken:
            return Floor(self.bytes_per_s, self.window_s, waited_s, amount)
        return Floor(
            self.bytes_per_s, self.window_s, self.waited_s + waited_s, self.received + amount
        )

    @property
    def is_broken(self) -> bool:
        """Whether a whole window passed below the floor."""
        too_few = self.received < self.bytes_per_s * self.waited_s
        return self.waited_s >= self.window_s and too_few
