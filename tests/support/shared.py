"""What is prepared once for all workers of a test run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

Prepared = TypeVar("Prepared")


def once(
    factory: pytest.TempPathFactory,
    name: str,
    prepare: Callable[[Path], Prepared],
    kind: type[Prepared],
) -> Prepared:
    """What `prepare` makes of an empty folder: by the first worker that gets here.

    The folder stays for all of them; what is returned went through JSON.
    """
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / name
    folder.mkdir(exist_ok=True)
    plan = folder / "plan.json"
    with locked(folder):
        if not plan.exists():
            shutil.rmtree(folder / "made", ignore_errors=True)  # of one that failed
            (folder / "made").mkdir()
            plan.write_bytes(msgspec.json.encode(prepare(folder / "made")))
    return msgspec.json.decode(plan.read_bytes(), type=kind)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder; others that do so wait."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
