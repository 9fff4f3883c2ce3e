"""Who is told how far a long piece of work is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Somebody who shows it."""

    def expect(self, steps: int, *, size: int = 0) -> None:
        """So many more steps are to come, which go through so many bytes."""

    def begin(self, name: str) -> None:
        """A step is being worked on from now on."""

    def step(self, text: str, *, size: int = 0, begun_as: str = "") -> None:
        """One is done, the one that began under that name; size is its part of the bytes."""


class Silent:
    """Nobody."""

    def expect(self, steps: int, *, size: int = 0) -> None:
        """Ignored."""

    def begin(self, name: str) -> None:
        """Ignored."""

    def step(self, text: str, *, size: int = 0, begun_as: str = "") -> None:
        """Ignored."""
