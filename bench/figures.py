"""What a bench found, as a table on the terminal and a section of docs/performance.md."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HEAD = """# Performance

Written by `make bench` (`python -m bench`); don't edit it by hand. Each figure
stands beside a peer measured in the same run, because seconds are the
machine's and ratios are ours. `python -m bench NAME` writes one section anew.
"""


@dataclass(frozen=True)
class Figure:
    """One line: what was measured, its peer, and the goal where there is one.

    value and peer are texts with units. met is None without a goal.
    """

    what: str
    value: str
    peer: str = ""
    ratio: float | None = None
    goal: str = ""
    met: bool | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        ratio = f"{self.ratio:.2f}" if self.ratio is not None else ""
        verdict = {None: "", True: "met", False: "**missed**"}[self.met]
        return (self.what, self.value, self.peer, ratio, self.goal, verdict)


COLUMNS = ("figure", "measured", "peer in the same run", "ratio", "goal", "")


@dataclass(frozen=True)
class Table:
    """What the figures were drawn from, line by line."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """A bench's title, how it measures, its figures, and the tables behind them."""

    title: str
    how: str
    figures: tuple[Figure, ...]
    tables: tuple[Table, ...] = ()

    @property
    def met(self) -> bool:
        """Whether no goal was missed."""
        return all(figure.met is not False for figure in self.figures)


def show(section: Section) -> None:
    """Print a section for people at a terminal."""
    print(f"\n{section.title}")
    for figure in section.figures:
        what, value, peer, ratio, goal, verdict = figure.cells
        beside = f"  beside {peer}" if peer else ""
        times = f"  ({ratio} times)" if ratio else ""
        aim = f"  goal: {goal}: {verdict.strip('*')}" if goal else ""
        print(f"  {what}: {value}{beside}{times}{aim}", flush=True)
    for table in section.tables:
        print(f"\n  {table.title}")
        for line in _aligned((table.columns, *table.rows)):
            print(f"    {line}", flush=True)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def write(
    document: Path, name: str, section: Section, *, command: str, load: float | None = None
) -> None:
    """Put the section into `document` in place of its former self.

    load is the machine's load average before the bench began: other work that
    the figures had to share it with.
    """
    text = document.read_text() if document.exists() else HEAD
    mark = f"<!-- {name} -->\n"
    fresh = mark + _markdown(section, command, load)
    found = re.compile(re.escape(mark) + r".*?(?=<!-- \w+ -->|\Z)", re.DOTALL)
    if found.search(text):
        text = found.sub(lambda _: fresh + "\n", text)
    else:
        text += f"\n{fresh}"
    document.write_text(text.rstrip("\n") + "\n")


def _markdown(section: Section, command: str, load: float | None) -> str:
    shared = f", load average {load:.1f} before" if load is not None else ""
    figures = _grid(COLUMNS, [item.cells for item in section.figures])
    tables = "".join(
        f"{table.title}:\n\n{_grid(table.columns, table.rows)}\n\n" for table in section.tables
    )
    return (
        f"## {section.title}\n\n{section.how}\n\n{figures}\n\n{tables}"
        f"`{command}`, {time.strftime('%Y-%m-%d')}, {machine()}{shared}\n"
    )


def _grid(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    """This machine in a line."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} × {_processor()}, {memory_gib:.0f} GiB, "
        f"{platform.system()} {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}"
    )


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found.group(1) if found else platform.machine()
