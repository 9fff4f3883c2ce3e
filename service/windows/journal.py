"""A service's log: a file that is bounded, and the event log for what matters.

A service has no standard error; this takes its place. Never raises: a full
disk below the log stops no revert.

 * A file that is full goes aside, as `.0`, before an older one is touched, and
   becomes `.1` then.
 * Who reads it may refuse that: then it is copied and emptied where it is, and
   where that can't be either, it grows a little and the next try comes later.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TextIO, cast

from service.windows.plan import Severity, severity

FILE_BYTES_MAX = 8 << 20
FILES_KEPT = 4
EVENT_CHARS_MAX = 30_000  # ReportEvent takes 31,839
TRIES_A_FILE = 8  # a file that can't go aside grows by an eighth before the next try

Tell = Callable[[Severity, str], None]


class Journal:
    """Stands for a text stream. Lines are whole before they are told."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, path: Path, tell: Tell, *, file_bytes_max: int = FILE_BYTES_MAX) -> None:
        self._path = path
        self._tell = tell
        self._file_bytes_max = file_bytes_max
        self._full_at = file_bytes_max
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
        if self._file is None or (size := self._file.tell()) < self._full_at:
            return
        self._file.close()
        self._file = None
        try:
            self._shift()  # what an end of the process left aside
            self._set_aside()
            self._full_at = self._file_bytes_max
            self._shift()
        except OSError:
            self._full_at = size + self._file_bytes_max // TRIES_A_FILE

    def _set_aside(self) -> None:
        """Empty the file; `.0` has its lines. Raises OSError: it has them still, and `.0` is gone.

        Without FILE_SHARE_DELETE a reader refuses the rename.
        """
        aside = self._numbered(0)
        try:
            self._path.replace(aside)
        except OSError:
            try:
                shutil.copyfile(self._path, aside)
                os.truncate(self._path, 0)
            except OSError:
                aside.unlink(missing_ok=True)
                raise

    def _shift(self) -> None:
        """Number `.0` and all before it by one more. Raises OSError: what is left stays."""
        if not self._numbered(0).exists():
            return
        for number in range(FILES_KEPT - 1, -1, -1):
            older = self._numbered(number)
            if older.exists():
                older.replace(self._numbered(number + 1))

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
