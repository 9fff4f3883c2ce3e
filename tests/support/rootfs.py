"""A small Debian to install into, made once and never written to.

HOLDFAST_SUITE names the release (bookworm unless set, or another of PYTHONS),
HOLDFAST_ROOTFS its folder (/tmp/rootfs-SUITE unless set). Each test gets an overlay
over it, which is gone after the test.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}  # whose packages are installed there
SUITE = os.environ.get("HOLDFAST_SUITE", "bookworm")
PYTHON = PYTHONS[SUITE]
PACKAGES = (
    "systemd,systemd-sysv,dbus,udev,kmod,iproute2,python3,python3-venv,ca-certificates,"
    "procps,e2fsprogs"
)
MAKING_S = 500


def base() -> Path:
    """The pristine system's folder; the test is skipped where it can't be made."""
    folder = Path(os.environ.get("HOLDFAST_ROOTFS", f"/tmp/rootfs-{SUITE}"))
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _make(folder)
    if folder.stat().st_uid != 0:
        pytest.skip(f"{folder} isn't root's")
    return folder


def _make(folder: Path) -> None:
    fresh = folder.with_name(f"{folder.name}.making")
    shutil.rmtree(fresh, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(fresh)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=MAKING_S)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no Debian to install into: {error}")
    for package in (fresh / "var/cache/apt/archives").glob("*.deb"):
        package.unlink()
    fresh.rename(folder)


class System:
    """An overlay to run commands in, as root, without an init."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *command: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `command` in the system; unless ok=False it has to succeed."""
        done = subprocess.run(
            ["chroot", str(self.root), *command],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not ok or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def files(self, *unchecked: str) -> set[str]:
        """Every path on the overlay but those that begin with one of `unchecked`."""
        command = ["find", str(self.root), "-xdev", "-printf", "%P\\n"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return {path for path in done.stdout.splitlines() if not path.startswith(unchecked)}


@contextlib.contextmanager
def disk() -> Iterator[Path]:
    """The root of an overlay over the pristine system, for as long as it is wanted."""
    lower = base()
    folder = Path(tempfile.mkdtemp(prefix="holdfast-system-", dir="/var/tmp"))
    upper, work, root = (folder / name for name in ("upper", "work", "root"))
    for path in (upper, work, root):
        path.mkdir(mode=0o755)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    try:
        command = ["mount", "-t", "overlay", "overlay", "-o", options, str(root)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("overlays can't be mounted here")
        try:
            yield root
        finally:
            subprocess.run(["umount", "--lazy", "--recursive", str(root)], check=True)
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def overlay() -> Iterator[System]:
    """A system of the test's own over the pristine one."""
    with disk() as root:
        for kind, place in (("tmpfs", "run"), ("proc", "proc")):
            subprocess.run(["mount", "-t", kind, kind, str(root / place)], check=True)
        yield System(root)
