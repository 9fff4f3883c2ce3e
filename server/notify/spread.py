"""When each agent is told to look.

Pure: numbers, names and the time come in, moments go out. Times are Unix
seconds.

 * A round is spread over a window that grows with the number of agents, so
   that `notify_per_s` of them are told a second, up to the longest window.
 * An agent's moment in a round is drawn from the digest of both names: the
   same after a restart, another one in the next round, even over all agents.
 * Who hasn't answered is told again `notify_again_s` after the last time, until
   he has been told `notify_times` times; so the repeats keep the spread.
 * Who returns is told at once when he is alone, and in turn in a crowd.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from server.settings import Policy

RECONNECT_LEAST_S = 1.0
RECONNECT_MOST_S = 60.0


@dataclass(frozen=True)
class Standing:
    """What is known of an agent's answers: the columns of server.storage.tables.Agent."""

    answered_round: int = 0
    told_round: int = 0
    told_times: int = 0
    told_at: float | None = None


def window_s(agents: int, policy: Policy) -> float:
    """Seconds over which `agents` are told of a round."""
    return min(agents / policy.notify_per_s, policy.notify_window_max_s)


def share(*names: object) -> float:
    """A number from 0 up to 1 that belongs to these names, even over many of them."""
    text = "\0".join(map(str, names))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def moment(agent_id: str, *, number: int, created_at: float, window_s: float) -> float:
    """When this agent is told of round `number`."""
    return created_at + share(agent_id, number) * window_s


def again(*, told_times: int, told_at: float, policy: Policy) -> float | None:
    """When an agent that was told `told_times` times and doesn't answer is told next."""
    return told_at + policy.notify_again_s if told_times < policy.notify_times else None


@dataclass(frozen=True)
class Queue:
    """The turns of those who return: `free_at` is the next that nobody has."""

    free_at: float = 0.0

    def take(self, *, now: float, policy: Policy) -> tuple[Queue, float]:
        """The queue after one more, and when he is told; never past the longest window."""
        turn = max(now, self.free_at)
        latest = now + policy.notify_window_max_s
        return Queue(min(turn + 1 / policy.notify_per_s, latest)), min(turn, latest)


def on_return(
    standing: Standing, *, number: int, heard: int, own_moment: float, now: float, policy: Policy
) -> float | None:
    """When an agent that has connected is told of round `number`, the newest.

    heard is the round of its Last-Event-ID. None: it has answered, or has been
    told often enough and has heard it. `now`: at its turn in the Queue.
    """
    if standing.answered_round >= number:
        return None
    if own_moment > now:
        return own_moment
    if standing.told_round < number or heard != number or standing.told_at is None:
        return now
    due = again(told_times=standing.told_times, told_at=standing.told_at, policy=policy)
    return None if due is None else max(due, now)


def reconnect_s(agent_id: str, *, agents: int, policy: Policy) -> float:
    """How long an agent waits before it connects again; all of them return in a crowd.

    Four times as fast as notifications: a connection costs the server less than
    the look that a notification causes.
    """
    crowd = agents / (4 * policy.notify_per_s)
    most = min(max(crowd, 2 * RECONNECT_LEAST_S), RECONNECT_MOST_S)
    return RECONNECT_LEAST_S + share(agent_id, "reconnect") * (most - RECONNECT_LEAST_S)
