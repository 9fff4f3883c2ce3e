"""What serverctl prints: tables for people, JSON for programs."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

PLAIN_WIDTH = 160  # a pipe has no width


def emit_json(value: Any) -> None:
    """`value` as JSON on standard output."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, none: str) -> None:
    """A table; `none` instead of one without rows. A column `#…` is right-aligned."""
    lines = [[_cell(value) for value in row] for row in rows]
    if not lines:
        click.echo(none)
        return
    made = Table(box=None, pad_edge=False)
    for name in columns:
        made.add_column(
            name.lstrip("#"), justify="right" if name.startswith("#") else "left", overflow="fold"
        )
    for line in lines:
        made.add_row(*line)
    is_terminal = sys.stdout.isatty()
    Console(
        no_color=None if is_terminal else True, width=None if is_terminal else PLAIN_WIDTH
    ).print(made)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text.replace("[", "\\[")


def when(moment: float | None) -> str:
    """A Unix time for people, in UTC, and how long ago."""
    if moment is None:
        return "never"
    text = datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{text} ({ago(time.time() - moment)})"


def ago(seconds: float) -> str:
    """`5 min ago`, `in 5 min`."""
    length = abs(seconds)
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s")):
        if length >= size:
            text = f"{length / size:.0f} {unit}"
            return f"{text} ago" if seconds > 0 else f"in {text}"
    return "now"


def size(count: int | None) -> str:
    """Bytes for people."""
    if count is None:
        return "–"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count:,} bytes"
