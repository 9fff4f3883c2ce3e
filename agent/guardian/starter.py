"""How processes of the fetcher's user are started: as children, or by a service of their own.

Whoever starts one uses it the same way: lines in, lines out, an end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from agent.children import Child, small_environment
from agent.host import User
from agent.loop import Loop

ABSENCE_MAX_S = 60.0  # of the service that would run it
ABSENT = -1001  # the status of what never ran; no process ends with it


class Running(Protocol):
    """A process that was started, or will be as soon as its service is there."""

    @property
    def pid(self) -> int | None:
        """Its process id; None: it isn't there yet."""

    def send(self, line: bytes) -> None:
        """Queue `line` for its standard input."""

    def kill(self) -> None:
        """End it at once. Gone is fine."""

    def terminate(self) -> None:
        """Ask it to end."""

    def wait(self, seconds: float) -> None:
        """Block until it has ended, killing it after `seconds`."""


class Starter(Protocol):
    """Starts them. on_end is called once, from the loop."""

    def start(
        self,
        command: Sequence[str],
        *,
        name: str,
        variables: Mapping[str, str],
        on_line: Callable[[bytes], None],
        on_end: Callable[[int], None],
    ) -> Running:
        """variables are added to its environment. Raises OSError: it can't be started."""

    def close(self) -> None:
        """Start no more."""


class Children:
    """Starts them as children that become `user`; None: they stay this process's."""

    def __init__(self, loop: Loop, user: User | None) -> None:
        self._loop = loop
        self._user = user

    def start(
        self,
        command: Sequence[str],
        *,
        name: str,
        variables: Mapping[str, str],
        on_line: Callable[[bytes], None],
        on_end: Callable[[int], None],
    ) -> Running:
        """See Starter."""
        return Child(
            self._loop,
            command,
            name=name,
            on_line=on_line,
            on_end=on_end,
            environment=small_environment(os.environ, **variables),
            user=self._user,
        )

    def close(self) -> None:
        """Nothing is open."""
