"""The agent's log: feed.log, in little memory.

Secrets never reach a log call: proxies and sources are logged without their
credentials (feed.proxy).

The packages of the long-lived processes import this module first, so that
structlog is loaded the way `_import_small` does it.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any


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

    from feed.log import configure

__all__ = ["configure", "get_logger"]

get_logger = structlog.get_logger
