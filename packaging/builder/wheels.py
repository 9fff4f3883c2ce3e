"""The wheels of a target: what a product's lock pins, and the project's own.

* Every file is held against the lock's hashes when it is fetched, by pip, and
  again whenever it is used.
* Only wheels: nothing that was fetched is run to build a package.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from packaging.markers import Marker
from packaging.utils import parse_wheel_filename

from builder.errors import BuildError
from builder.project import ROOT, Project, Target

_PIN = re.compile(r"(?P<pin>[a-z0-9-]+==\S+)(?: ; (?P<marker>.+?))? \\")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


class Wheel(NamedTuple):
    """A wheel's file, and what its name says."""

    name: str
    version: str
    path: Path

    @property
    def digest(self) -> str:
        """Lowercase hex SHA-256 of the file."""
        return digest_of(self.path)


def digest_of(path: Path) -> str:
    """Lowercase hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dependencies(named: Path, target: Target, cache: Path) -> list[Wheel]:
    """What the lock `named` pins for `target`, by name; fetched unless `cache` has it.

    Raises BuildError: a file is missing on the index, or isn't as it was locked.
    """
    lock = reduced(named.read_text(encoding="utf-8"), target)
    key = hashlib.sha256(f"{target}\n{lock}".encode()).hexdigest()[:16]
    folder = cache / f"{target}-{key}"
    if not folder.exists():
        _fetch(lock, target, folder)
    wheels = sorted(_named(path) for path in folder.glob("*.whl"))
    hashes = set(_HASH.findall(lock))
    for wheel in wheels:
        if wheel.digest not in hashes:
            raise BuildError(f"{wheel.path} isn't what {named.name} pins; remove {folder}")
    return wheels


def reduced(lock: str, target: Target) -> str:
    """The lock's entries whose markers hold on `target`, without the markers."""
    kept: list[str] = []
    wanted = False
    for line in lock.splitlines():
        if line.startswith("#"):
            continue
        pin = _PIN.fullmatch(line)
        if pin:
            wanted = _holds(pin["marker"], target)
        if wanted:
            kept.append(f"{pin['pin']} \\" if pin else line)
    return "\n".join(kept) + "\n"


def _holds(marker: str | None, target: Target) -> bool:
    return marker is None or Marker(marker).evaluate(target.environment)


def _fetch(lock: str, target: Target, folder: Path) -> None:
    """All files of the lock in `folder`, or no folder. Two builds may do it at once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        _download(lock, target, fresh)
        fresh.rename(folder)
    except OSError:
        if not folder.exists():  # else another build was first
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _download(lock: str, target: Target, folder: Path) -> None:
    named = folder / "lock.txt"
    named.write_text(lock, encoding="utf-8")
    version = target.python.replace(".", "")
    options = ["--implementation", "cp", "--python-version", target.python]
    options += ["--abi", f"cp{version}", "--abi", "abi3", "--abi", "none"]
    options += [option for tag in target.platforms for option in ("--platform", tag)]
    options += ["--only-binary", ":all:", "--no-deps", "--require-hashes"]
    _pip("download", *options, "--dest", str(folder), "--requirement", str(named))


def own(project: Project, folder: Path) -> Wheel:
    """The project's wheel, built into `folder` from this checkout without network."""
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    _pip("wheel", *options, str(ROOT), SOURCE_DATE_EPOCH=str(project.epoch))
    (path,) = folder.glob("holdfast-*.whl")
    return _named(path)


def _named(path: Path) -> Wheel:
    name, version, _, _ = parse_wheel_filename(path.name)
    return Wheel(name=name, version=str(version), path=path)


def _pip(command: str, *options: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check", *options],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(f"pip {command} ended with {done.returncode}:\n{done.stdout.strip()}")
