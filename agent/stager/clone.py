"""Copy from the active slot, sharing its blocks where the file system can.

A clone (FICLONE: btrfs, xfs and others) is a file of its own: it shares blocks
until either of the two is written. Elsewhere the kernel copies. Never a hard
link, see docs/adr/0011.

 * Only files, folders and links are copied, and nothing is followed.
 * No more is copied than the signed length, whatever lies in the slot.
 * A copy counts for nothing before the caller has held it against its digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from agent.errors import SlotError
from feed import durable, tree

if sys.platform == "linux":
    import fcntl

CHUNK = 1 << 20
FICLONE = 0x40049409  # linux/fs.h
SHARED_BYTES_MIN = 4096  # a block; below, a clone saves nothing


def copy_tree(source: Path, target: Path, *, limit: int) -> None:
    """Copy what is in the folder `source` into a new folder `target`.

    Of a mode only the owner's executable bit is kept. Nothing is flushed.

    Raises SlotError: more than `limit` bytes of files, too many entries, or
    something else than files, folders and links. OSError: the disk failed.
    """
    target.mkdir(mode=0o755)
    for path, entry in _entries(source):
        place = target / path
        if entry.is_symlink():
            place.symlink_to(Path(entry.path).readlink())
        elif entry.is_dir():
            place.mkdir(mode=0o755)
        else:
            limit -= copy_file(Path(entry.path), place, limit=limit)


def copy_file(source: Path, target: Path, *, limit: int) -> int:
    """Copy one regular file of at most `limit` bytes to the new file `target`.

    Returns its size. Raises SlotError: not such a file. OSError: the disk failed.
    """
    with _opened(source) as old:
        status = os.fstat(old.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise SlotError(f"{source} is neither a file, a folder nor a link")
        if status.st_size > limit:
            raise SlotError(f"{source} is {status.st_size:,} bytes, {limit:,} are left to copy")
        mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
        with durable.open_private(target, mode=mode) as new:
            if not _reflink(old, new):
                _copy(old, new, status.st_size)
    return status.st_size


def share(folder: Path, held: Mapping[str, Path], scratch: Path) -> int:
    """Put clones in the place of files below `folder` that the active slot has too.

    held is {digest: file}, whatever their names are now; scratch is a name
    beside `folder`, on its file system, that nobody uses. Contents, modes and
    links stay what they are. Returns how many files share their blocks now: 0
    where the file system can't.

    Raises OSError: the disk failed; `folder` holds what it held.
    """
    if not any(_cloned(file, scratch) for file in list(held.values())[:1]):
        return 0
    return sum(
        _share_one(folder / path, held, scratch)
        for path, entry in _entries(folder)
        if entry.is_file(follow_symlinks=False) and entry.stat().st_size >= SHARED_BYTES_MIN
    )


def digest_of(path: Path) -> str:
    """The lowercase hex SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _share_one(path: Path, held: Mapping[str, Path], scratch: Path) -> bool:
    digest = digest_of(path)
    source = held.get(digest)
    # The clone is read again: the active slot may not hold what its seal says.
    if source is None or not _cloned(source, scratch) or digest_of(scratch) != digest:
        return False
    scratch.chmod(stat.S_IMODE(path.stat().st_mode))
    scratch.replace(path)
    return True


def _cloned(source: Path, target: Path) -> bool:
    """Make `target` a clone of `source`; False when it can't be, for whatever reason."""
    try:
        with _opened(source) as old, durable.open_private(target) as new:
            return _reflink(old, new)
    except OSError:
        return False


def _reflink(old: BinaryIO, new: BinaryIO) -> bool:
    """Let `new`, empty, share the blocks of `old`; False where that can't be."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # whatever it is, a copy succeeds or says it better
            fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
            return True
    return False


def _copy(old: BinaryIO, new: BinaryIO, size: int) -> None:
    """Copy `size` bytes, no more: a file that grows meanwhile isn't followed."""
    done = _copy_in_kernel(old.fileno(), new.fileno(), size)
    old.seek(done)
    new.seek(done)
    while done < size and (chunk := old.read(min(size - done, CHUNK))):
        done += len(chunk)
        new.write(chunk)


def _copy_in_kernel(old: int, new: int, size: int) -> int:
    """Copy from offset 0 as far as the kernel does it; returns the bytes copied."""
    done = 0
    if not hasattr(os, "copy_file_range"):
        return done
    try:
        while done < size and (count := os.copy_file_range(old, new, size - done, done, done)):
            done += count
    except OSError:  # other file systems, old kernels; a failing disk fails again
        return done
    return done


def _opened(path: Path) -> BinaryIO:
    """`path` itself, never what a link in its place points to; a fifo doesn't block."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.fdopen(os.open(path, flags | getattr(os, "O_BINARY", 0)), "rb")


def _entries(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything below `folder` with its path in there, a folder before its content."""
    pending = [""]
    seen = 0
    while pending:
        prefix = pending.pop()
        with os.scandir(folder / prefix) as found:
            entries = list(found)
        seen += len(entries)
        if seen > tree.MEMBERS_MAX:
            raise SlotError(f"{folder} has over {tree.MEMBERS_MAX:,} entries")
        for entry in entries:
            yield prefix + entry.name, entry
            if entry.is_dir(follow_symlinks=False):
                pending.append(f"{prefix}{entry.name}/")
