"""Takes all there is of one thing, for as long as a file begins with the word for it.

    python3 pressing.py FILE

 spin    every core, more than once
 bomb    processes that make processes; those that can make none spin
 deaf    the same, and for as long as nobody ends them: SIGHUP does
 full    every process there may be, and a core
 hogs    memory, until the kernel kills

Needs nothing but Python: engines turn into it, also in a guest.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

LOOK_S = 0.2
PIECE_BYTES = 16 << 20


class Press:
    """The word that was found, and whether it still holds."""

    def __init__(self, content: Path) -> None:
        self._content = content
        self.word = self._said()

    def _said(self) -> str:
        try:
            with self._content.open("rb") as file:
                return file.read(4).decode("ascii", "replace")
        except OSError:
            return "calm"

    def holds(self) -> bool:
        return self.word == "deaf" or self._said() == self.word

    def bear(self, act: Callable[[], None]) -> bool:
        """A child that does `act` and nothing else; False: there can be none."""
        try:
            if os.fork() == 0:
                act()
                os._exit(0)
        except OSError:
            return False
        return True

    def spin(self) -> None:
        while self.holds():
            end = time.monotonic() + LOOK_S
            while time.monotonic() < end:
                pass

    def bomb(self) -> None:
        while self.holds():
            if not self.bear(self.bomb):
                self.spin()

    def fill(self) -> None:
        ours, theirs = os.pipe()

        def wait() -> None:  # without any work, until the first of them has ended
            os.close(theirs)
            os.read(ours, 1)

        while self.bear(wait):
            pass
        self.spin()

    def hog(self) -> None:
        held = []
        while self.holds():
            began = time.monotonic()
            held.append(b"x" * PIECE_BYTES)
            # Rests twice as long as it works: to fill memory slowly isn't to burn.
            time.sleep(max(0.02, 2 * (time.monotonic() - began)))

    def go_on(self) -> None:
        """Press until the word is another one, or until it is killed."""
        if self.word == "spin":
            for _ in range(2 * (os.cpu_count() or 1)):
                self.bear(self.spin)
            self.spin()
        elif self.word == "bomb":
            self.bomb()
        elif self.word == "deaf":
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
            self.bomb()
        elif self.word == "full":
            self.fill()
        elif self.word == "hogs":
            self.hog()


if __name__ == "__main__":
    Press(Path(sys.argv[1])).go_on()
    os._exit(0)
