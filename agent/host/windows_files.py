"""Windows: files that are in use, and folders whose owner may be hostile."""

from __future__ import annotations

import contextlib
import msvcrt
import os
import secrets
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import win32con
import win32file

from agent.host import naming
from agent.host.windows_errors import as_os_error
from agent.host.windows_users import as_fetcher
from feed.windows_files import delete_at_boot

if sys.platform != "win32":
    raise ImportError("agent.host.posix is the other systems' part")

EMPTYING_S = 5.0
SHARE_ALL = win32con.FILE_SHARE_READ | win32con.FILE_SHARE_WRITE | win32con.FILE_SHARE_DELETE


def empty(folder: Path, *, seconds: float = EMPTYING_S) -> bool:
    """Delete everything in a folder that may be somebody else's; False if something is left.

    Done with the fetcher's own token where there is one: wherever a junction
    may lead, no more is deleted than the fetcher could delete itself.
    """
    deadline = time.monotonic() + seconds
    with as_fetcher():
        try:
            return _is_real_folder(folder) and _empty(folder, deadline)
        except OSError:
            return False


def _empty(folder: Path, deadline: float) -> bool:
    with os.scandir(folder) as entries:
        paths = [Path(entry.path) for entry in entries]
    done = True
    for path in paths:
        if time.monotonic() > deadline:
            return False
        try:
            if _is_real_folder(path) and not _empty(path, deadline):
                done = False
            else:
                _delete(path)
        except FileNotFoundError:
            continue
        except OSError:
            done = False
    return done


def _delete(path: Path) -> None:
    facts = path.lstat()
    if facts.st_file_attributes & stat.FILE_ATTRIBUTE_READONLY:
        path.chmod(stat.S_IWRITE)
    if facts.st_file_attributes & stat.FILE_ATTRIBUTE_DIRECTORY:
        path.rmdir()  # of a junction: the junction
    else:
        path.unlink()


def _is_real_folder(path: Path) -> bool:
    marks = path.lstat().st_file_attributes
    return bool(marks & stat.FILE_ATTRIBUTE_DIRECTORY) and not (
        marks & stat.FILE_ATTRIBUTE_REPARSE_POINT
    )


def remove_tree(folder: Path) -> None:
    """Delete a folder of ours. Files that are in use go aside, and at the next boot.

    They go to `.gone` beside the folder's parent. Raises OSError: a program
    holds one in a way that doesn't even let it be renamed.
    """
    aside = folder.parent.parent / ".gone"
    for path in [*_below(folder), folder]:
        try:
            _delete(path)
        except PermissionError:
            _move_aside(path, aside)
    sweep_aside(aside)


def _below(folder: Path) -> Iterator[Path]:
    """Everything in `folder`, what is deeper first; links aren't followed."""
    with os.scandir(folder) as entries:
        paths = [Path(entry.path) for entry in entries]
    for path in paths:
        if _is_real_folder(path):
            yield from _below(path)
        yield path


def _move_aside(path: Path, aside: Path) -> None:
    aside.mkdir(exist_ok=True)
    gone = aside / naming.aside_name(path.name, token=lambda: secrets.token_hex(8))
    path.rename(gone)
    delete_at_boot(gone)


def sweep_aside(aside: Path) -> None:
    """Delete what was moved aside and isn't in use any more."""
    with contextlib.suppress(OSError):
        for path in list(aside.iterdir()):
            with contextlib.suppress(OSError):
                _delete(path)
        aside.rmdir()


def open_below(folder: Path, path: str) -> BinaryIO:
    """Open `path`, relative with '/', below `folder`, whose owner may be hostile.

    Whatever links were passed, the file that was opened must be the one that
    was named: its final path is asked of the handle. Two levels above `folder`
    nobody but administration writes. Raises OSError.
    """
    base = folder.absolute().parent.parent
    wanted = str(Path(_final_path(base), *folder.absolute().parts[-2:], *path.split("/")))
    with as_os_error(folder / path):
        handle: Any = win32file.CreateFile(
            str(folder.absolute().joinpath(*path.split("/"))),
            win32con.GENERIC_READ,
            SHARE_ALL,
            None,
            win32con.OPEN_EXISTING,
            win32con.FILE_FLAG_BACKUP_SEMANTICS,
            None,
        )
        found = str(win32file.GetFinalPathNameByHandle(handle, 0))
    if not naming.same_path(found, wanted):
        handle.Close()
        raise OSError(None, "a link leads elsewhere", str(folder / path))
    descriptor = msvcrt.open_osfhandle(handle.Detach(), os.O_RDONLY | os.O_BINARY)
    return os.fdopen(descriptor, "rb")


def _final_path(folder: Path) -> str:
    with as_os_error(folder):
        handle: Any = win32file.CreateFile(
            str(folder), 0, SHARE_ALL, None, win32con.OPEN_EXISTING,
            win32con.FILE_FLAG_BACKUP_SEMANTICS, None,
        )  # fmt: skip
        try:
            return str(win32file.GetFinalPathNameByHandle(handle, 0))
        finally:
            handle.Close()
