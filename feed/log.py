"""Structured logs on standard error: one JSON object a line, readable on a terminal.

Events have constant names and fields. agent.log and server.log say what each of
them adds; a program configures its log once, at its start.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO, cast

import structlog

if TYPE_CHECKING:
    from structlog.typing import Processor


class _Unfailing:
    """A stream whose writes may be lost: a full disk below the log stops no program."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def configure(level: str, *, program: str, added: Sequence[Processor] = ()) -> None:
    """Send this process's events to standard error from `level` up.

    added: what is done to every event besides, before it is written.
    """
    last = _one_line if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *added,
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Unfailing(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(program=program)


def _one_line(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    head = " ".join(str(event.pop(key, "")) for key in ("timestamp", "program", "level", "event"))
    return head + "".join(f" {key}={value}" for key, value in event.items())
