"""Packages of this checkout, built once for all workers of a test run."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("agent", "feed", "publisher", "service", "packaging", "requirements", "docs")
PAGES = ("pyproject.toml", "README.md", "CHANGELOG.md", "config.example.toml")
EPOCH = 1_790_000_000
_CACHE = ROOT / "build" / "wheels"


def built(shared: Path, *kinds: str) -> Path:
    """The folder with packages of `kinds`; `shared` is a folder of all workers."""
    shared.mkdir(parents=True, exist_ok=True)
    out = shared / "-".join(kinds)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            fresh = shared / f"{out.name}.new"
            shutil.rmtree(fresh, ignore_errors=True)
            build(ROOT, fresh, *kinds)
            fresh.rename(out)
    return out


def build(checkout: Path, out: Path, *options: str, umask: int = 0o022, **environment: str) -> None:
    """Run the build of `checkout`; packed quickly, so larger than those that are shipped."""
    where = [f"--out={out}", f"--cache={_CACHE}"]
    done = subprocess.run(
        [sys.executable, "-m", "builder", *options, "--level=0", *where],
        cwd=checkout,
        env={
            **os.environ,
            "PYTHONPATH": str(checkout / "packaging"),
            "SOURCE_DATE_EPOCH": str(EPOCH),
            **environment,
        },
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def newer(package: Path, folder: Path) -> Path:
    """The same package as a later revision, without one of its modules."""
    tree = folder / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN" / "control"
    control.write_text(control.read_text().replace("-1+py", "-2+py"))
    (gone,) = tree.rglob("agent/ctl/explain.py")
    gone.unlink()
    made = folder / "newer.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, made], check=True)
    return made


def copied(folder: Path) -> Path:
    """A copy in `folder` of all that a build reads, with times of its own."""
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=unwanted, copy_function=shutil.copyfile)
    for name in PAGES:
        shutil.copyfile(ROOT / name, folder / name)
    return folder
