"""What commands print: tables and progress on a terminal, plain lines and JSON elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

SPEED_OVER_S = 3600.0  # of which the time that remains is told: one step may take minutes
PLAIN_WIDTH = 160  # a pipe has no width; wide enough for a table's longest line


def say(text: str) -> None:
    """A line on standard output, whatever it contains."""
    click.echo(text)


def warn(text: str) -> None:
    """A line on standard error, so that --json stays JSON."""
    click.echo(f"publisher: warning: {text}", err=True)


def emit_json(value: Any) -> None:
    """`value` as JSON on standard output."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def table(title: str, *columns: str, rows: Sequence[tuple[str, ...]], numbers: int = 0) -> None:
    """A table; the last `numbers` columns are right-aligned. Nothing if there are no rows."""
    if not rows:
        return
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        is_number = index >= len(columns) - numbers
        made.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        made.add_row(*(cell.replace("[", "\\[") for cell in row))
    _console().print(made)


def _console() -> Console:
    is_terminal = sys.stdout.isatty()
    return Console(
        file=sys.stdout,
        force_terminal=is_terminal,
        no_color=None if is_terminal else True,
        width=None if is_terminal else PLAIN_WIDTH,
    )


class StepProgress:
    """publisher.progress.Progress: a bar on a terminal, a line a step elsewhere.

    Both count steps; the bar also bytes, and by them the time that remains.
    Writes to standard error: standard output is for results.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._steps = self._steps_done = self._size = self._size_done = 0
        self._bar: Progress | None = None
        if sys.stderr.isatty() and not quiet:
            self._bar = Progress(
                BarColumn(),
                TextColumn("{task.fields[steps]}"),
                DownloadColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}", markup=False),
                console=Console(stderr=True),
                transient=True,
                speed_estimate_period=SPEED_OVER_S,
            )
            self._task = self._bar.add_task("", total=0, steps="0/0")

    def __enter__(self) -> StepProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def expect(self, steps: int, *, size: int = 0) -> None:
        """So many more steps are to come, which go through so many bytes."""
        self._steps += steps
        self._size += size
        self._show()

    def step(self, text: str, *, size: int = 0) -> None:
        """One is done; size is its part of the bytes."""
        self._steps_done += 1
        self._size_done += size
        self._show(text)
        if not self._bar and not self._quiet:
            click.echo(f"[{self._steps_done}/{self._steps}] {text}", err=True)

    def _show(self, text: str | None = None) -> None:
        if self._bar:
            self._bar.update(
                self._task,
                completed=self._size_done,
                total=self._size,
                steps=f"{self._steps_done}/{self._steps}",
                description=text,
            )
