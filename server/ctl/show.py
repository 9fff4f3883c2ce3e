"""What serverctl prints: tables for people, JSON for programs.

What machines tell of themselves is anybody's text: no control character of it
reaches a terminal, and none of it is markup.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 160  # a pipe has no width
UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"


def clean(text: str) -> str:
    """`text` in one line, with what isn't printable replaced."""
    return "".join(char if char.isprintable() else UNPRINTABLE for char in text)


def say(line: str) -> None:
    """One line on standard output."""
    click.echo(clean(line))


def emit_json(value: Any) -> None:
    """`value` as JSON on standard output; what isn't printable in it is escaped."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    click.echo("".join(char if char.isprintable() else _escaped(char) for char in text))


def done(answer: Any, line: str, *, as_json: bool) -> None:
    """What a command that changes something says: `answer` as JSON, or the line."""
    if as_json:
        emit_json(answer)
    else:
        say(line)


def _escaped(char: str) -> str:
    return char if char == "\n" else json.dumps(char)[1:-1]  # a line's end is the layout's


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


def _cell(value: object) -> Text:
    if value is None:
        return Text("–")
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return Text(clean(text))


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
