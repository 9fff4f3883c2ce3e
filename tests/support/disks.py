"""Disks whose power can be cut: ext4 and xfs on images in memory.

    with Disk("ext4", place, folder / "state") as disk:    # mounted there
        ...
        disks.cut(folder / "state", FORGETFUL)
        ...                                                # kill what runs on it
        disk.replug()                                      # what a machine finds when it boots

The cut is the kernel's own (FS_IOC_SHUTDOWN): from that instant on nothing
reaches the image, and what was never flushed is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

MEMORY = Path("/dev/shm")
SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN, linux/fs.h; xfs calls it XFS_IOC_GOINGDOWN
HASTY = 1  # the journal is written, the data it speaks of needn't be
FORGETFUL = 2  # not even the journal: only what was fsynced is there

IMAGES = {  # the smallest that mkfs makes without being forced
    "ext4": (24 << 20, ("mkfs.ext4", "-q", "-F", "-J", "size=4")),
    "xfs": (320 << 20, ("mkfs.xfs", "-q", "-f")),
}
SYSTEM_BYTES = 1 << 30  # a whole Debian's disk; memory is taken only for what is on it
BUSY_S = 10.0

CLONE_NEWNS = 0x00020000  # sched.h
MS_REC, MS_PRIVATE = 0x4000, 1 << 18  # sys/mount.h

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def own_mounts() -> Iterator[None]:
    """What this thread and its later children mount is seen by nobody else.

    A namespace that somebody else makes meanwhile would keep a disk that has
    no power mounted: the next mount would find that one, not what is on the image.
    """
    with Path("/proc/thread-self/ns/mnt").open("rb") as before:
        _check(_libc.unshare(CLONE_NEWNS), "unshare", Path("/"))
        try:
            _check(_libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "mount", Path("/"))
            yield
        finally:
            _check(_libc.setns(before.fileno(), CLONE_NEWNS), "setns", Path("/"))


def missing() -> str:
    """Why there can be no such disk here, for a skip; empty when there can."""
    if os.geteuid() != 0:
        return "power cuts need root"
    if shutil.which("losetup") is None:
        return "power cuts need losetup"
    if not os.access(MEMORY, os.W_OK):
        return f"power cuts need {MEMORY}"
    found = subprocess.run(["losetup", "--find"], capture_output=True, text=True, check=False)
    if found.returncode:
        return f"power cuts need a loop device: {found.stderr.strip()}"
    return "" if kinds() else f"power cuts need {' or '.join(IMAGES)}"


def kinds() -> list[str]:
    """The file systems that can be made and mounted here."""
    known = Path("/proc/filesystems").read_text().split()
    return [name for name in IMAGES if name in known and shutil.which(f"mkfs.{name}")]


def cut(mounted: Path, how: int) -> None:
    """Cut the power of the disk that is mounted there."""
    descriptor = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", how))
    finally:
        os.close(descriptor)


class Disk:
    """A file system of `kind`, its image in the folder `place`, mounted at `point`.

    size is in bytes, the smallest possible unless given.
    """

    def __init__(self, kind: str, place: Path, point: Path, *, size: int = 0) -> None:
        self.kind = kind
        self.point = point
        self._size = max(size, IMAGES[kind][0])
        self._image = place / f"{kind}.img"
        self._device = ""

    def __enter__(self) -> Self:
        make = IMAGES[self.kind][1]
        self.point.mkdir(parents=True, exist_ok=True)
        with self._image.open("wb") as image:
            image.truncate(self._size)
        subprocess.run([*make, self._image], check=True)
        attach = ["losetup", "--find", "--show", self._image]
        done = subprocess.run(attach, check=True, capture_output=True, text=True)
        self._device = done.stdout.strip()
        self._mount()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._unmount()
        finally:
            subprocess.run(["losetup", "-d", self._device], check=False)
            self._image.unlink()

    def replug(self) -> None:
        """Unmount and mount again: the journal is replayed, no page is remembered."""
        self._unmount()
        self._mount()

    def wipe(self) -> None:
        """An empty disk again."""
        for path in self.point.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def sync(self) -> None:
        """Make all that is on it outlive a cut."""
        descriptor = os.open(self.point, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _check(_libc.syncfs(descriptor), "syncfs", self.point)
        finally:
            os.close(descriptor)

    def _mount(self) -> None:
        given = self._device.encode(), os.fsencode(self.point), self.kind.encode(), 0, None
        _check(_libc.mount(*given), "mount", self.point)

    def _unmount(self) -> None:
        """A process that was just killed may hold the disk for a moment, its namespace longer."""
        deadline = time.monotonic() + BUSY_S
        is_left = False
        while True:
            try:
                if not is_left:
                    _check(_libc.umount2(os.fsencode(self.point), 0), "umount", self.point)
                    is_left = True
                os.close(os.open(self._device, os.O_RDONLY | os.O_EXCL))  # nobody mounts it
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
            else:
                return


def _check(result: int, call: str, path: Path) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", str(path))
