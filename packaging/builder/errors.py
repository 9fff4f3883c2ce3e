"""What ends a build."""

from __future__ import annotations


class BuildError(Exception):
    """Nothing usable was built; the text says why and what to do."""
