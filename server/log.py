"""The server's log: feed.log, with the requests and with what libraries log.

Tokens, credentials and bodies never reach a log call. Every event of a request
carries its request_id.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any

import structlog

from feed import log

get_logger = structlog.get_logger

# Of its own, for every request sets it: structlog's cost ten times as much.
request_id: ContextVar[str] = ContextVar("request_id", default="")


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
    added = (_of_its_request, structlog.processors.format_exc_info)
    log.configure(level, program=program, added=added)
    logging.basicConfig(handlers=[_Events()], level=logging.WARNING, force=True)


def _of_its_request(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    if of_request := request_id.get():
        event["request_id"] = of_request
    return event
