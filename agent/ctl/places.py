"""Find the guardian's sockets by three settings alone, without checking the other ones.

Loading agent.config costs 40 ms, most of it msgspec: more than the rest of
`agentctl status`, which monitoring runs all day.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from agent import layout
from agent.layout import Layout


class _Folders(NamedTuple):
    state_dir: str | None
    runtime_dir: str | None
    trust_root: str | None


def locate(config_path: Path | None) -> Layout | None:
    """The layout that the file asks for; None when only agent.config can say what is wrong."""
    path = config_path or layout.default_path()
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    values = [table.get(name) for name in _Folders._fields]
    if not all(value is None or isinstance(value, str) for value in values):
        return None
    return layout.resolve(_Folders(*values), path)
