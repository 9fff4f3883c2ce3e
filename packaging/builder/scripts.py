"""Maintainer scripts: packaging/linux/lifecycle.sh in front of each one's own few lines."""

from __future__ import annotations

from pathlib import Path

from builder import program

DROP_IN = "50-holdfast.conf"  # what `agentctl protect` writes into a unit's .d folder


def lifecycle() -> str:
    """The shared functions, with the units that this package has."""
    text = (program.LINUX / "lifecycle.sh").read_text(encoding="utf-8")
    return text.replace("@UNITS@", " ".join(program.enabled_units())).replace("@DROP_IN@", DROP_IN)


def rendered(script: Path) -> str:
    """The shell script `script`, its line `#LIFECYCLE#` replaced by the functions."""
    return script.read_text(encoding="utf-8").replace("#LIFECYCLE#\n", lifecycle())
