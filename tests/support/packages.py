"""Packages of this checkout, built once for all workers of a test run.

Both products' packages are in one folder; `package_of` tells them apart.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import rootfs

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "packaging"))

from builder.product import AGENT, PRODUCTS, SERVER, Product  # noqa: E402 - no package of ours

__all__ = ["AGENT", "PRODUCTS", "SERVER", "Product"]

SOURCES = ("agent", "feed", "publisher", "server", "service", "packaging", "requirements", "docs")
PAGES = (
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "config.example.toml",
    "server.example.toml",
)
EPOCH = 1_790_000_000
_CACHE = ROOT / "build" / "wheels"


def built(temporary: pytest.TempPathFactory) -> Path:
    """The folder with the packages of this checkout, of all kinds that can be built here."""
    base = temporary.getbasetemp()
    shared = (base.parent if "popen-gw" in base.name else base) / "packages"
    kinds = ["deb", "rpm"] if shutil.which("rpmbuild") else ["deb"]
    shared.mkdir(parents=True, exist_ok=True)
    out = shared / "-".join(kinds)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            fresh = shared / f"{out.name}.new"
            shutil.rmtree(fresh, ignore_errors=True)
            build(ROOT, fresh, *kinds, f"--python={rootfs.PYTHON}")
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


def package_of(product: Product, kind: str, dist: Path) -> Path:
    """The package of a kind in the folder: `deb` or `rpm`."""
    (found,) = dist.glob(f"{product.package}[_-][0-9]*.{kind}")
    return found


def newer(package: Path, folder: Path, *, without: str = "agent/ctl/explain.py") -> Path:
    """The same package as a later revision, without one of its modules."""

    def change(tree: Path) -> None:
        control = tree / "DEBIAN" / "control"
        control.write_text(control.read_text().replace("-1+py", "-2+py"))
        (gone,) = tree.rglob(without)
        gone.unlink()

    return changed(package, folder / "newer.deb", change)


def without_libraries(package: Path, folder: Path) -> Path:
    """The same package with nothing to import; installed in no time."""

    def change(tree: Path) -> None:
        (modules,) = tree.glob("opt/*/lib/*/site-packages")
        shutil.rmtree(modules)
        modules.mkdir()

    return changed(package, folder / "without-libraries.deb", change)


def changed(package: Path, made: Path, change: Callable[[Path], None]) -> Path:
    """The package with what `change` does to its unpacked tree, as the file `made`."""
    tree = made.with_suffix(".tree")
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    change(tree)
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, made], check=True)
    return made


def breaking(package: str, made: Path, *, preinst: str = "exit 0") -> Path:
    """A package called `neighbour` with which `package` can't be configured."""
    tree = made.with_suffix(".tree")
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: neighbour\nVersion: 1\nArchitecture: all\nMaintainer: none\n"
        f"Description: in the way\nBreaks: {package}\n"
    )
    script = tree / "DEBIAN" / "preinst"
    script.write_text(f"#!/bin/sh\n{preinst}\n")
    script.chmod(0o755)
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
