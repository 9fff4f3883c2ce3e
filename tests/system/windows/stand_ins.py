"""In the place of what Wine can't do. Loaded by every Python in the test environment.

Wine 8 has no reparse points: `current` is a file here that names its target.
Everything else is the product's own code. What a junction is made of is tested
on Linux (tests/unit/test_windows_names.py); that Windows takes it isn't shown
here, and docs/adr/0014 says how to show it on a real one.
"""

from __future__ import annotations

from pathlib import Path

from agent import host
from agent.host import windows
from feed import durable


def read_junction(link: Path) -> str | None:
    try:
        return link.read_text(encoding="utf-8") if link.is_file() else None
    except OSError:
        return None


def switch_link(link: Path, target: Path | None) -> None:
    if target is None:
        durable.remove(link)
    else:
        durable.replace(link, str(target.absolute()).encode())


windows.read_junction = read_junction
windows.switch_link = switch_link
host.switch_link = switch_link
