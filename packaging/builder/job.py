"""What one call builds, gathered once for every kind of package."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

from builder.errors import BuildError
from builder.product import Product
from builder.project import Project, Target
from builder.wheels import Wheel


class Job(NamedTuple):
    """The inputs of a package, and where it goes."""

    product: Product
    project: Project
    target: Target
    own: Wheel
    others: list[Wheel]  # by name
    work: Path  # a folder of this job's own
    out: Path
    level: int  # of compression, 0 to 9
    python_dir: Path | None  # Windows: the interpreter to bundle

    @property
    def summary(self) -> str:
        """One line on what is built."""
        return self.product.summary or self.project.summary

    def run(self, *command: str, **environment: str) -> str:
        """What a tool prints, run in the time of the package.

        Raises BuildError: the tool is missing, or fails.
        """
        fixed = {"SOURCE_DATE_EPOCH": str(self.project.epoch), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        try:
            done = subprocess.run(
                command,
                env={**os.environ, **fixed, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
        except FileNotFoundError as error:
            raise BuildError(
                f"{command[0]} isn't installed; docs/install.md names the tools of each package"
            ) from error
        if done.returncode != 0:
            raise BuildError(f"{command[0]} ended with {done.returncode}:\n{done.stdout.strip()}")
        return done.stdout
