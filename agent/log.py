"""Structured logs on standard error: one JSON object a line, readable on a terminal.

Events have constant names and fields. Secrets never reach a log call: proxies
and sources are logged without their credentials (feed.proxy).

The packages of the long-lived processes import this module first, so that
structlog is loaded the way `_import_small` does it.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator, MutableMapping
from types import ModuleType
from typing import Any, TextIO, cast


@contextlib.contextmanager
def _import_small() -> Iterator[None]:
    """Import structlog without the two packages that the agent never uses of it.

    It imports asyncio for coroutine loggers and rich, where it is installed,
    for coloured tracebacks: 3.0 and 3.5 MB of a guardian's 22.6 MB (PSS) and
    a third of its modules. asyncio is put off until somebody uses it; rich is
    said to be absent, which structlog provides for.
    """
    hidden: dict[str, Any] = {"asyncio": _Deferred("asyncio"), "rich": None}
    hidden = {name: module for name, module in hidden.items() if name not in sys.modules}
    sys.modules.update(hidden)
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


class _Deferred(ModuleType):
    """Stands for a module, which is imported when an attribute of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


with _import_small():
    import structlog

get_logger = structlog.get_logger


class _Unfailing:
    """A stream whose writes may be lost: a full disk below the log stops no revert."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


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
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Unfailing(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(program=program)


def _one_line(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    head = " ".join(str(event.pop(key, "")) for key in ("timestamp", "program", "level", "event"))
    return head + "".join(f" {key}={value}" for key, value in event.items())
