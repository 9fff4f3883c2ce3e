"""Structured logs on standard error: one JSON object a line, readable on a terminal.

Events have constant names and fields. Secrets never reach a log call: proxies
and sources are logged without their credentials (feed.proxy).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog


def configure(level: str, *, program: str) -> None:
    """Send this process's events to standard error from `level` up."""
    on_terminal = sys.stderr.isatty()
    last = _one_line if on_terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(program=program)


def _one_line(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    head = " ".join(str(event.pop(key, "")) for key in ("timestamp", "program", "level", "event"))
    return head + "".join(f" {key}={value}" for key, value in event.items())
