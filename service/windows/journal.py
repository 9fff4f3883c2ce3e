"""A service's log: a file that is bounded, and the event log for what matters.

A service has no standard error; this takes its place. Never raises: a full
disk below the log stops no revert.
"""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TextIO, cast

from service.windows.plan import Severity, severity

FILE_BYTES_MAX = 8 << 20
FILES_KEPT = 4
EVENT_CHARS_MAX = 30_000  # ReportEvent takes 31,839

Tell = Callable[[Severity, str], None]


class Journal:
    """Stands for a text stream. Lines are whole before they are told."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, path: Path, tell: Tell, *, file_bytes_max: int = FILE_BYTES_MAX) -> None:
        self._path = path
        self._tell = tell
        self._file_bytes_max = file_bytes_max
        self._lock = threading.Lock()  # children's errors come by threads of their own
        self._line = ""
        self._file: TextIO | None = None

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._line = (self._line + text).split("\n")
            for line in lines:
                self._put(line)
        return len(text)

    def flush(self) -> None:
        """Each line is written at once."""

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        """There is none: as io says it, so that who asks can go without."""
        raise io.UnsupportedOperation("fileno")

    def _put(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self._rotate()
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("a", encoding="utf-8", errors="replace")
            self._file.write(f"{line}\n")
            self._file.flush()
        kind = severity(line)
        if kind:
            with contextlib.suppress(OSError):
                self._tell(kind, line[:EVENT_CHARS_MAX])

    def _rotate(self) -> None:
        if self._file is None or self._file.tell() < self._file_bytes_max:
            return
        self._file.close()
        self._file = None
        for number in range(FILES_KEPT - 1, 0, -1):
            older = self._numbered(number)
            if older.exists():
                older.replace(self._numbered(number + 1))
        self._path.replace(self._numbered(1))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def close(self) -> None:
        with self._lock:
            if self._file:
                self._file.close()
            self._file = None


def take_over(path: Path, tell: Tell) -> Journal:
    """Have standard error and output of this process go to the file at `path`."""
    journal = Journal(path, tell)
    sys.stderr = cast("TextIO", journal)
    sys.stdout = cast("TextIO", journal)
    return journal
