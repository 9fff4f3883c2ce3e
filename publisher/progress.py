"""Who is told how far a long piece of work is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Somebody who shows it."""

    def expect(self, steps: int) -> None:
        """So many more steps are to come."""

    def step(self, text: str) -> None:
        """One is done."""


class Silent:
    """Nobody."""

    def expect(self, steps: int) -> None:
        """Ignored."""

    def step(self, text: str) -> None:
        """Ignored."""
