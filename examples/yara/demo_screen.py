"""What the demo shows: headings, command lines, a live line while something lasts.

On a terminal there are colours and the live line is drawn over itself. Elsewhere
it is a plain line when something changed, and every few seconds when nothing did.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence

PLAIN_INTERVAL_S = 3.0
PLAIN_STEP = 0.15  # of a core; a change worth a plain line before that
BOLD, FAINT, RED, GREEN, YELLOW, CYAN = "1", "2", "1;31", "1;32", "1;33", "36"
SPARKS = "▁▂▃▄▅▆▇█"
TREND_SAMPLES = 16


class Screen:
    """Writes to standard output; `started` is what times are counted from."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.step = "getting ready"
        self.is_terminal = sys.stdout.isatty()
        self._colours = self.is_terminal and "NO_COLOR" not in os.environ
        self._live = ""  # what the live line is about, "" when there is none
        self._drawn_at = 0.0
        self._level = 0.0
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]

    def elapsed_s(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self.started

    def paint(self, text: str, colour: str) -> str:
        """`text` in `colour`, on terminals."""
        return f"\x1b[{colour}m{text}\x1b[0m" if colour and self._colours else text

    def say(self, text: str = "") -> None:
        """A line of its own."""
        self.end_live()
        print(text, flush=True)

    def heading(self, number: int, text: str) -> None:
        """A step begins."""
        self.step = f"step {number} ({text})"
        self.say()
        self.say(self.paint(f"{number}. {text}", BOLD) + f"  [{self.elapsed_s():.0f} s]")

    def command(self, text: str) -> None:
        """A command line, about to be run."""
        self.say(self.paint(f"$ {text}", CYAN))

    def fact(self, text: str) -> None:
        """Something that was held against the files or asked of a process, and is so."""
        self.say(f"{self.paint('✓', GREEN)} {text}")

    def live(self, about: str, text: str, *, level: float = 0.0, colour: str = "") -> None:
        """`text` on the live line; a new `about` leaves the old line standing.

        level is the figure whose change is worth a plain line.
        """
        line = f"{self.elapsed_s():6.1f} s  {text}"
        if self.is_terminal:
            if self._live and about != self._live:
                print()
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{self.paint(line[:width], colour)}", end="", flush=True)
        elif self._is_news(about, level):
            print(line, flush=True)
        else:
            return
        self._live, self._level, self._drawn_at = about, level, time.monotonic()

    def _is_news(self, about: str, level: float) -> bool:
        changed = about != self._live or abs(level - self._level) >= PLAIN_STEP
        return changed or time.monotonic() - self._drawn_at >= PLAIN_INTERVAL_S

    def end_live(self) -> None:
        """Leave the live line standing."""
        if self._live and self.is_terminal:
            print()
        self._live = ""


def trend(shares: Sequence[float]) -> str:
    """The last shares of a core as a row of blocks."""
    top = len(SPARKS) - 1
    return "".join(
        SPARKS[round(min(max(share, 0.0), 1.0) * top)] for share in shares[-TREND_SAMPLES:]
    )


def bar(share: float, width: int = 20) -> str:
    """A progress bar for a share between 0 and 1."""
    filled = round(min(max(share, 0.0), 1.0) * width)
    return f"[{'#' * filled}{'.' * (width - filled)}]"
