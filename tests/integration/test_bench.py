"""The benches run, and the promises that don't depend on the machine hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.figures import HEAD, Figure, Section, Table, write

ROOT = Path(__file__).parents[2]


@pytest.mark.alone
@pytest.mark.timeout(400)
def test_no_read_during_flips_is_broken_and_a_check_is_one_conditional_request() -> None:
    document = ROOT / "docs" / "performance.md"
    before = document.read_bytes() if document.exists() else None
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "flip", "check"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=390,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": met") == 2
    assert "missed" not in done.stdout
    assert (document.read_bytes() if document.exists() else None) == before


def test_an_unknown_bench_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "fli"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no such bench: fli" in done.stderr


def test_a_section_is_written_in_place_of_its_former_self(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"

    def section(title: str, value: str) -> Section:
        return Section(title, "How.", (Figure("figure", value, goal="2", met=value == "2"),))

    write(document, "one", section("One", "1"), command="python -m bench one")
    write(document, "two", section("Two", "2"), command="python -m bench two")
    write(document, "one", section("One", "2"), command="python -m bench one")
    text = document.read_text()
    assert text.startswith(HEAD)
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## One", "## Two"]
    assert "missed" not in text
    assert text.count("| figure | 2 |  |  | 2 | met |") == 2


def test_the_tables_behind_the_figures_are_written_below_them(tmp_path: Path) -> None:
    table = Table("Bytes", ("pair", "ours"), (("1→2", "5"), ("2→3", "7")))
    section = Section("One", "How.", (Figure("figure", "1"),), (table,))
    write(tmp_path / "performance.md", "one", section, command="python -m bench one")
    text = (tmp_path / "performance.md").read_text()
    assert "\n\nBytes:\n\n| pair | ours |\n| --- | --- |\n| 1→2 | 5 |\n| 2→3 | 7 |\n\n" in text
