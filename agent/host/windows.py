"""Windows: boots, priorities, the junction, locks, the fetcher's token, the registry.

What differs from POSIX, and what makes up for it (docs/adr/0014):

 * A junction that exists is pointed elsewhere in one step. It is made, and
   taken away, in one step too. None of these is flushed for certain before the
   call returns: the boot record says what it must be, and every start repairs it.
 * A file that somebody runs can't be deleted, only renamed: it is moved aside
   and deleted at the next boot.
"""

from __future__ import annotations

import contextlib
import ctypes
import msvcrt
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import psutil
import pywintypes
import win32api
import win32con
import win32file
import win32job
import winioctlcon

from agent.errors import AgentError
from agent.host import naming, reparse
from agent.host.registry import Registry
from agent.host.windows_errors import as_os_error
from agent.host.windows_files import SHARE_ALL, empty, open_below, remove_tree
from agent.host.windows_users import User, give_to, is_root, user_of
from feed import durable
from feed.windows_files import make_private

if sys.platform != "win32":
    raise ImportError("agent.host.posix is the other systems' part")

__all__ = [
    "HeldLock",
    "Peer",
    "ProcessHandle",
    "User",
    "boot_id",
    "drop_network",
    "empty",
    "end_with_parent",
    "give_to",
    "hold",
    "is_root",
    "link_target",
    "lock_file",
    "machine_registry",
    "notify_service",
    "on_notice",
    "open_below",
    "points_at",
    "raise_priority",
    "remove_tree",
    "reset_priority",
    "switch_link",
    "user_of",
]

HOLDER_BYTES = 32  # of a pid in a lock, padded: written over, it needs no room on the disk
LOCK_AT = 1 << 30  # beyond the pid that the file shows: a locked byte can't be read
_LINK_ITSELF = win32con.FILE_FLAG_BACKUP_SEMANTICS | 0x00200000  # FILE_FLAG_OPEN_REPARSE_POINT
_MEMORY = r"SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management"

_notified: Callable[[str], None] | None = None


def boot_id() -> str:
    """Another value after every boot: the kernel's boot time and Windows' count of boots.

    A fast start-up resumes the kernel, so it is the same boot; it follows an
    orderly shutdown, which is no sign of a release that hangs.
    """
    kept = (ctypes.c_int64 * 6)()  # SYSTEM_TIMEOFDAY_INFORMATION: boot, now, zone, -, bias, sleep
    query = ctypes.WinDLL("ntdll").NtQuerySystemInformation
    status = query(3, ctypes.byref(kept), ctypes.sizeof(kept), None)
    if status != 0 or not kept[0]:
        return naming.boot_id(count=_boot_count(), booted=int(psutil.boot_time()), bias=0)
    return naming.boot_id(count=_boot_count(), booted=kept[0], bias=kept[4])


def _boot_count() -> int | None:
    import winreg  # noqa: PLC0415 - once

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, rf"{_MEMORY}\PrefetchParameters") as key:
            return int(winreg.QueryValueEx(key, "BootId")[0])
    except OSError:
        return None


def raise_priority() -> bool:
    """Get scheduled before ordinary processes. Children don't inherit it."""
    return _set_class(psutil.HIGH_PRIORITY_CLASS)


def reset_priority() -> bool:
    """Back to the ordinary priority; False where that isn't allowed."""
    return _set_class(psutil.NORMAL_PRIORITY_CLASS)


def _set_class(value: int) -> bool:
    try:
        psutil.Process().nice(value)
    except (psutil.Error, OSError):
        return False
    return True


# The current link.


def link_target(link: Path) -> str | None:
    """The name of the slot that `link` points at; None: no such junction."""
    target = read_junction(link)
    return Path(target).name if target else None


def points_at(link: Path, target: Path) -> bool:
    """Whether `link` is what `switch_link` makes of it."""
    found = read_junction(link)
    return found is not None and naming.same_path(found, str(target.absolute()))


def switch_link(link: Path, target: Path | None) -> None:
    """Make `link` a junction to `target`; None removes it. Raises OSError.

    One that exists is changed where it stands, so it never isn't there. The
    first is made under another name and renamed.
    """
    if target is None:
        remove_junction(link)
        return
    if read_junction(link) is not None:
        durable.fault_point("rename", link)
        write_junction(link, target)
        durable.fault_point("done", link)
        return
    with contextlib.suppress(FileNotFoundError):
        link.rmdir()  # the empty folder of a switch that was cut off
    temp = link.with_name(f"{durable.TEMP_PREFIX}{link.name}")
    remove_junction(temp)
    temp.mkdir()
    write_junction(temp, target)
    durable.rename(temp, link)


def remove_junction(link: Path) -> None:
    """Take a junction or an empty folder away, never what it leads to; missing is fine."""
    durable.fault_point("remove", link)
    with contextlib.suppress(FileNotFoundError):
        link.rmdir()


def read_junction(link: Path) -> str | None:
    """The absolute path `link` leads to; None: there is none, or it is no junction."""
    try:
        with _opened_link(link, 0) as handle:
            buffer = win32file.DeviceIoControl(handle, reparse.GET, None, reparse.BYTES_MAX)
    except pywintypes.error:
        return None
    return reparse.target_of(bytes(buffer))


def write_junction(folder: Path, target: Path) -> None:
    """Make the empty folder or junction `folder` lead to `target`, in one step. Raises OSError."""
    data = reparse.packed(str(target.absolute()))
    with as_os_error(folder), _opened_link(folder, win32con.GENERIC_WRITE) as handle:
        win32file.DeviceIoControl(handle, winioctlcon.FSCTL_SET_REPARSE_POINT, data, 0)
        with contextlib.suppress(pywintypes.error):  # not every file system flushes folders
            win32file.FlushFileBuffers(handle)


@contextlib.contextmanager
def _opened_link(link: Path, access: int) -> Iterator[Any]:
    handle = win32file.CreateFile(
        str(link), access, SHARE_ALL, None, win32con.OPEN_EXISTING, _LINK_ITSELF, None
    )
    try:
        yield handle
    finally:
        handle.Close()


# Locks.


class HeldLock:
    """A lock on a file, held until this process ends or `release` is called."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        os.close(self._descriptor)


def lock_file(path: Path) -> HeldLock:
    """Take `path` for this process alone.

    Raises AgentError: another process holds it; names its pid.
    """
    descriptor = _opened_lock(path)
    try:
        _lock(descriptor)
    except OSError as error:
        holder = os.read(descriptor, HOLDER_BYTES).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise AgentError(
            f"a guardian (pid {holder}) already runs with {path.parent}; see agentctl status"
        ) from error
    with contextlib.suppress(OSError):  # on a full disk only the name in it is wrong
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"{os.getpid():<{HOLDER_BYTES - 1}}\n".encode())
    return HeldLock(descriptor)


def hold(path: Path) -> HeldLock:
    """Wait until no other process holds `path`, then hold it as `lock_file` does."""
    descriptor = _opened_lock(path)
    while True:
        try:
            _lock(descriptor)
        except OSError:
            time.sleep(0.1)  # msvcrt's own waiting gives up after ten tries
        else:
            return HeldLock(descriptor)


def _opened_lock(path: Path) -> int:
    """A lock file that is administration's alone: who can open one can lock its bytes."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_BINARY | os.O_NOINHERIT, 0o600)
    with contextlib.suppress(OSError):
        make_private(path)
    return descriptor


def _lock(descriptor: int) -> None:
    os.lseek(descriptor, LOCK_AT, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)


def end_with_parent(parent: int | None) -> bool:
    """Whether this process ends with its parent: it is in the job that its parent made.

    The parent holds the job, which kills on close, and puts a child into it
    before the child's first instruction: there is nothing to ask for here.
    """
    if parent is not None and not psutil.pid_exists(parent):
        raise SystemExit(0)
    with contextlib.suppress(pywintypes.error):
        any_job: Any = None
        return bool(win32job.IsProcessInJob(win32api.GetCurrentProcess(), any_job))
    return False


def drop_network() -> bool:
    """Not possible for a process on its own; the stager has no code for it (adr/0014)."""
    return False


class Peer:
    """The process at the other end of a local connection. A fetcher is a child here."""

    def __init__(self, pid: int, uid: int) -> None:
        self.pid = pid
        self.uid = uid

    def kill(self) -> bool:
        """It can't be told from a later process of that number."""
        return False

    def close(self) -> None:
        """Nothing is held."""


def peer_of(connection: socket.socket) -> Peer:
    """Raises OSError: the loop's sockets have no local names."""
    raise OSError(f"{connection!r}: Windows doesn't say who is at the other end")


def expendable(pid: int) -> None:
    """Windows ends nobody when memory is short: who asks for more is refused."""
    del pid


class ProcessHandle:
    """One life of a process, by its number and start. Raises OSError: none has the number."""

    def __init__(self, pid: int) -> None:
        try:
            self._process = psutil.Process(pid)
        except psutil.Error as error:
            raise OSError(str(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def stop(self) -> None:
        """Windows has no such call for all of a process; ending it does."""

    def kill(self) -> None:
        """End it at once. Raises OSError."""
        try:
            self._process.kill()
        except psutil.Error as error:
            raise OSError(str(error)) from error


def watchdog_s() -> float | None:
    """The service manager asks for no sign of life."""
    return None


def on_notice(told: Callable[[str], None] | None) -> None:
    """What the service does with `notify_service`."""
    global _notified  # noqa: PLW0603 - one service in a process
    _notified = told


def notify_service(state: str) -> None:
    """Tell the service, if this process is one."""
    if _notified:
        _notified(state)


def machine_registry() -> Registry:
    """The machine's registry."""
    from agent.host.windows_registry import MachineRegistry  # noqa: PLC0415 - settings alone

    return MachineRegistry()
