"""What commands print: tables and progress on a terminal, plain lines and JSON elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

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

    Writes to standard error: standard output is for results.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Progress | None = None
        if sys.stderr.isatty() and not quiet:
            self._bar = Progress(
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.description}", markup=False),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("", total=0)

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

    def expect(self, steps: int) -> None:
        """So many more steps are to come."""
        if self._bar:
            total = self._bar.tasks[0].total or 0
            self._bar.update(self._task, total=total + steps)

    def step(self, text: str) -> None:
        """One is done."""
        if self._bar:
            self._bar.update(self._task, advance=1, description=text)
        elif not self._quiet:
            click.echo(text, err=True)
