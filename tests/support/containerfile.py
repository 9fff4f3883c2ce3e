"""Read a Containerfile's instructions, where there is no container runtime to build it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple


class Instruction(NamedTuple):
    """One instruction: `RUN`, and all of its text."""

    word: str
    text: str


def read(path: Path) -> list[Instruction]:
    """The instructions of `path`, continued lines joined, comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    pairs = (line.split(None, 1) for line in joined.splitlines() if line.strip())
    return [Instruction(word, text) for word, text in pairs]


def arguments(steps: list[Instruction]) -> dict[str, str]:
    """The defaults of the build arguments; those without one are empty."""
    pairs = (step.text.partition("=") for step in steps if step.word == "ARG")
    return {name: value for name, _, value in pairs}


def filled(text: str, values: dict[str, str]) -> str:
    """`text` with ${NAME} replaced."""
    return re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], text)


def copied(steps: list[Instruction]) -> list[tuple[list[str], str]]:
    """Of each COPY: its sources, and where they go."""
    words = [shlex.split(step.text) for step in steps if step.word == "COPY"]
    return [(it[:-1], it[-1]) for it in words]
