"""The one way bytes become durable.

Everything that must survive a power cut is written by `replace`, `rename`,
`append`, `remove` or `sync_tree`; each step passes a named fault point, so a
test can stop the process at every one of them. Writers of large files write
to a name nobody reads, then `rename` it into place.

Rules (rename(2), fsync(2), and the ext4 and xfs journals behind them):
 * fsync the file before its rename, the directory after it.
 * a temporary name starts with a dot and is deleted by whoever finds it.
"""

from __future__ import annotations

import contextlib
import glob
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

if sys.platform == "win32":
    from feed.windows_files import flush as _flush
    from feed.windows_files import make_private as _make_private
    from feed.windows_files import move as _move
    from feed.windows_files import unlink as _unlink
else:

    def _flush(path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _move(source: Path, target: Path) -> None:
        source.replace(target)

    def _unlink(path: Path) -> None:
        path.unlink()


TEMP_PREFIX = ".tmp-"

FaultHook = Callable[[str, str], None]


def _no_fault(_point: str, _where: str) -> None:
    return


_fault_hook: FaultHook = _no_fault


def set_fault_hook(hook: FaultHook | None) -> None:
    """Call `hook(point, path)` at every fault point from now on; None stops it.

    point is one of write, fsync, rename, dirsync, done, append, remove.
    """
    global _fault_hook  # noqa: PLW0603 - one process, one hook
    _fault_hook = hook or _no_fault


def fault_point(point: str, where: Path | str) -> None:
    """Say that the step named `point` is about to happen at `where`."""
    _fault_hook(point, str(where))


Owner = tuple[int, int]  # uid and gid


def replace(
    path: Path,
    data: bytes,
    *,
    mode: int = 0o600,
    owner: Owner | None = None,
    flush: bool = True,
) -> None:
    """Make `path` hold exactly `data`: all of it or what was there before.

    The file is this process's, or `owner`'s. A link at `path` is replaced itself.
    flush: see replacing.
    Raises OSError: nothing changed, or, when the directory couldn't be
    flushed, it changed and may not survive a power cut. No temporary file is
    left.
    """
    with replacing(path, mode=mode, flush=flush) as out:
        if owner is not None and sys.platform != "win32":
            os.fchown(out.fileno(), *owner)
            os.fchmod(out.fileno(), mode)  # a change of owner takes set-id bits away
        out.write(data)


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o600, flush: bool = True) -> Iterator[BinaryIO]:
    """A file to write; on leaving the block it durably becomes `path`.

    An exception inside the block leaves `path` as it was. flush=False is for
    what nobody looks for after a power cut: it becomes `path` in one step, too,
    but what the disk then holds of it is anybody's guess.
    """
    temp = path.with_name(f"{TEMP_PREFIX}{path.name}.{os.getpid()}")
    fault_point("write", path)
    try:
        with open_private(temp, mode=mode) as out:
            yield out
            out.flush()
            if flush:
                fault_point("fsync", path)
                os.fsync(out.fileno())
        rename(temp, path, flush=flush)
    except BaseException:
        with contextlib.suppress(OSError):
            temp.unlink()
        raise


def open_private(path: Path, *, mode: int = 0o600) -> BinaryIO:
    """A new file for writing, never another name of a file that somebody left there."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    flags |= getattr(os, "O_BINARY", 0)
    out = os.fdopen(os.open(path, flags, mode), "wb")
    if sys.platform != "win32":
        os.fchmod(out.fileno(), mode)
    elif not mode & 0o077:
        _make_private(path)
    return out


def rename(source: Path, target: Path, *, flush: bool = True) -> None:
    """Give `source`, already fsynced, the name `target`, durably; flush: see replacing."""
    fault_point("rename", target)
    _move(source, target)
    if flush:
        sync_directory(target.parent)
    fault_point("done", target)


def append(path: Path, line: bytes, *, mode: int = 0o600) -> None:
    """Add `line` to a journal. After a power cut the last line may be torn."""
    fault_point("append", path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0), mode)
    try:
        while line:  # a write may be short, on a disk that is nearly full
            line = line[os.write(descriptor, line) :]
        fault_point("fsync", path)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_directory(path.parent)
    fault_point("done", path)


def remove(path: Path) -> None:
    """Delete a file, durably; missing is fine."""
    fault_point("remove", path)
    with contextlib.suppress(FileNotFoundError):
        _unlink(path)
        sync_directory(path.parent)
        fault_point("done", path)


def sync_file(path: Path) -> None:
    """Flush one file's content to the disk."""
    fault_point("fsync", path)
    _flush(path)


def sync_directory(path: Path) -> None:
    """Flush a directory: without it a rename can vanish after power loss."""
    fault_point("dirsync", path)
    if sys.platform == "win32":
        return  # NTFS logs names in order, and `move` waits for its log
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(root: Path) -> None:
    """Flush every file and directory below `root`, then `root` itself."""
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            file = Path(folder, name)
            if not file.is_symlink():
                sync_file(file)
        sync_directory(Path(folder))


def sweep_temporaries(folder: Path, *, of: str | None = None) -> list[Path]:
    """Delete what interrupted `replacing`s left in `folder`; returns the paths.

    `of` limits it to those of one file name, in a folder that isn't ours.
    """
    pattern = "*" if of is None else f"{glob.escape(of)}.*"
    found = sorted(folder.glob(f"{TEMP_PREFIX}{pattern}"))
    for path in found:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    return found
