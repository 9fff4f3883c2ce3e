"""Structured logs of the server on standard error: one JSON object a line.

Events have constant names and fields. Tokens, credentials and bodies never
reach a log call. Every event of a request carries its request_id.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any, TextIO, cast

import structlog

get_logger = structlog.get_logger

# Of its own, for every request sets it: structlog's cost ten times as much.
request_id: ContextVar[str] = ContextVar("request_id", default="")


class _Unfailing:
    """A stream whose writes may be lost: a full disk below the log stops no request."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


class _Events(logging.Handler):
    """What libraries log (uvicorn, SQLAlchemy, Litestar), as events of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        told = {"logger": record.name, "message": record.getMessage()}
        if record.exc_info and record.exc_info[1] is not None:
            told["trace"] = logging.Formatter().formatException(record.exc_info)
        structlog.get_logger().log(record.levelno, "library", **told)


def configure(level: str, *, program: str) -> None:
    """Send this process's events to standard error from `level` up.

    Libraries are heard from warning up.
    """
    last = _one_line if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _of_its_request,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
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
    logging.basicConfig(handlers=[_Events()], level=logging.WARNING, force=True)


def _of_its_request(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    if of_request := request_id.get():
        event["request_id"] = of_request
    return event


def _one_line(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    head = " ".join(str(event.pop(key, "")) for key in ("timestamp", "program", "level", "event"))
    return head + "".join(f" {key}={value}" for key, value in event.items())
