"""What commands print: tables and progress on a terminal, plain lines and JSON elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

SPEED_OVER_S = 3600.0  # of which the time that remains is told: one step may take minutes
BEAT_S = 2.0  # the longest silence, while there is no terminal to show a clock on
BAR_WIDTH = 84  # of the bar with its figures, when they are longest
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
    """publisher.progress.Progress: a bar on a terminal, lines elsewhere.

    Both count steps and bytes and name what is being worked on; the bar tells
    the time that remains as well. Without a terminal there is a line for each
    step, and one whenever BEAT_S passed without. Writes to standard error:
    standard output is for results. quiet leaves out the lines.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._steps = self._steps_done = self._size = self._size_done = 0
        self._running: dict[str, None] = {}
        self._bar = _bar() if sys.stderr.isatty() else None
        self._task = self._bar.add_task("", total=0, steps="0/0") if self._bar else TaskID(0)
        self._lines = None if self._bar or quiet else _Lines(self._beat)

    def __enter__(self) -> StepProgress:
        if self._bar:
            self._bar.start()
        if self._lines:
            self._lines.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()
        if self._lines:
            self._lines.stop()

    def expect(self, steps: int, *, size: int = 0) -> None:
        """So many more steps are to come, which go through so many bytes."""
        self._steps += steps
        self._size += size
        self._show()

    def begin(self, name: str) -> None:
        """A step is being worked on from now on."""
        self._running[name] = None
        self._show(self._at_work())

    def step(self, text: str, *, size: int = 0, begun_as: str = "") -> None:
        """One is done, the one that began under that name; size is its part of the bytes."""
        self._running.pop(begun_as, None)
        self._steps_done += 1
        self._size_done += size
        self._show(self._at_work() or text)
        if self._lines:
            self._lines.say(f"[{self._steps_done}/{self._steps}] {text}")

    def _at_work(self) -> str:
        return ", ".join(list(self._running))  # a thread asks too

    def _beat(self) -> str:
        """What is said when no step ended for a while."""
        done, size = self._size_done / 1e6, self._size / 1e6
        through = f", {done:,.0f} of {size:,.0f} MB done" if size else ""
        return f"[{self._steps_done}/{self._steps}]{through}: {self._at_work() or 'at work'}"

    def _show(self, text: str | None = None) -> None:
        if self._bar:
            self._bar.update(
                self._task,
                completed=self._size_done,
                total=self._size,
                steps=f"{self._steps_done}/{self._steps}",
                description=None if text is None else _cropped(text, self._bar.console.width),
            )


def _cropped(text: str, width: int) -> str:
    """What of it fits beside the bar: rich would break the other columns to fit it."""
    room = max(width - BAR_WIDTH, 10)
    return text if len(text) <= room else f"{text[: room - 1]}…"


def _bar() -> Progress:
    return Progress(
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


class _Lines:
    """Lines on standard error; a thread adds one with the time whenever there was silence."""

    def __init__(self, beat: Callable[[], str]) -> None:
        self._beat = beat
        self._began = self._said = time.monotonic()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._break_silence, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def say(self, text: str) -> None:
        with self._lock:
            self._said = time.monotonic()
            click.echo(text, err=True)

    def _break_silence(self) -> None:
        while not self._ended.wait(max(self._said + BEAT_S - time.monotonic(), 0.05)):
            now = time.monotonic()
            if now - self._said >= BEAT_S:
                self.say(f"{now - self._began:.0f} s {self._beat()}")
