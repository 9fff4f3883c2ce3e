"""Linux and other POSIX systems: boots, priorities, links, locks, users."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from agent.errors import AgentError, UnknownNameError
from agent.host.registry import Registry
from feed import durable

if sys.platform == "win32":
    raise ImportError("agent.host.windows is Windows' part")

TRIAL_NICE = -15  # above ordinary work, below the kernel's own threads
CLONE_NEWNET = 0x40000000  # sched.h
LEVELS_AT_ONCE = 32  # each holds two descriptors
HOLDER_BYTES = 32  # of a pid in a lock, padded: written over, it needs no room on the disk
EMPTYING_S = 5.0  # an ordinary handover is gone in milliseconds
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
PR_SET_PDEATHSIG = 1  # prctl.h


def boot_id() -> str:
    """Another value after every boot: the service manager's, the kernel's, or the boot time.

    Units pass systemd's own (HOLDFAST_BOOT_ID=%b): in a container, a unit with a
    /proc of its own would read the host's.
    """
    given = os.environ.get("HOLDFAST_BOOT_ID", "").replace("-", "")
    if re.fullmatch(r"[0-9a-f]{32}", given):
        return "-".join(re.findall(r"(.{8})(.{4})(.{4})(.{4})(.{12})", given)[0])
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        import psutil  # noqa: PLC0415 - only where the kernel offers no boot id

        return f"boot-{psutil.boot_time():.0f}"


def is_root() -> bool:
    """Whether this process may change users and network namespaces."""
    return os.geteuid() == 0


def raise_priority() -> bool:
    """Get scheduled before ordinary processes; False where that isn't allowed.

    Children don't inherit it (Linux): an engine that a hook restarts is an
    ordinary process.
    """
    if hasattr(os, "SCHED_RESET_ON_FORK"):
        with contextlib.suppress(OSError):
            policy = os.SCHED_OTHER | os.SCHED_RESET_ON_FORK
            os.sched_setscheduler(0, policy, os.sched_param(0))
    return _set_nice(TRIAL_NICE)


def reset_priority() -> bool:
    """Back to the ordinary priority; False where that isn't allowed."""
    return _set_nice(0)


def _set_nice(value: int) -> bool:
    try:
        os.setpriority(os.PRIO_PROCESS, 0, value)
    except (PermissionError, OSError):
        return False
    return True


def link_target(link: Path) -> str | None:
    """The name of the slot that `link` points at; None: no such link."""
    try:
        return link.readlink().name
    except OSError:
        return None


def points_at(link: Path, target: Path) -> bool:
    """Whether `link` is what `switch_link` makes of it."""
    try:
        return str(link.readlink()) == os.path.relpath(target, link.parent)
    except OSError:
        return False


def switch_link(link: Path, target: Path | None) -> None:
    """Make `link` point at `target` in one step; None removes it. Durable.

    At no instant does the link not exist: it is renamed over the old one.
    """
    if target is None:
        durable.remove(link)
        return
    temp = link.with_name(f"{durable.TEMP_PREFIX}{link.name}")
    with contextlib.suppress(FileNotFoundError):
        temp.unlink()
    temp.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
    durable.rename(temp, link)


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
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, HOLDER_BYTES).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
            raise
        raise AgentError(
            f"a guardian (pid {holder}) already runs with {path.parent}; see agentctl status"
        ) from error
    with contextlib.suppress(OSError):  # on a full disk only the name in it is wrong
        os.pwrite(descriptor, f"{os.getpid():<{HOLDER_BYTES - 1}}\n".encode(), 0)
    return HeldLock(descriptor)


def hold(path: Path) -> HeldLock:
    """Wait until no other process holds `path`, then hold it as `lock_file` does."""
    descriptor = _opened_lock(path)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return HeldLock(descriptor)


def _opened_lock(path: Path) -> int:
    """A lock file that is its owner's alone: who can open one, if only to read, can take it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    with contextlib.suppress(OSError):
        os.fchmod(descriptor, 0o600)  # one that was copied here may be anybody's to read
    return descriptor


def end_with_parent(parent: int | None) -> bool:
    """Be killed when the parent ends (Linux); False where that isn't possible.

    parent is its process id as it gave it. A parent that had ended before the
    kernel was asked sends no signal any more: then this process ends at once.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    asked = bool(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0)
    if parent is not None and os.getppid() != parent:
        raise SystemExit(0)
    return asked


@dataclass(frozen=True)
class User:
    """A user to run a child as."""

    uid: int
    gid: int


def user_of(name: str) -> User | None:
    """The user a fetcher runs as: None when this process is no root or `name` is empty.

    Raises UnknownNameError: no such user.
    """
    if not name or not is_root():
        return None
    try:
        found = pwd.getpwnam(name)
    except KeyError as error:
        raise UnknownNameError(
            f"fetcher_user: there is no user {name!r}; create it (useradd --system {name}) "
            "or name another one"
        ) from error
    return User(uid=found.pw_uid, gid=found.pw_gid)


def give_to(folder: Path, user: User) -> None:
    """Make `folder` itself the user's. What another user left in it is deleted.

    What lies in it is never given away: whoever filled the folder could have put
    a hard link or a swapped folder there, and would get somebody else's file.
    """
    with _folder(folder) as descriptor:
        if os.fstat(descriptor).st_uid == user.uid:
            return
        empty(folder)
        os.fchown(descriptor, user.uid, user.gid)


def empty(folder: Path, *, seconds: float = EMPTYING_S) -> bool:
    """Delete everything in a folder that may be somebody else's; False if something is left.

    Follows no link, and gives up after `seconds`: however deep or full its owner
    made it, or goes on making it, it costs no more than that.
    """
    deadline = time.monotonic() + seconds
    try:
        with _folder(folder) as top:
            return _empty(top, top, 0, deadline)
    except OSError:
        return False


def _empty(folder: int, top: int, depth: int, deadline: float) -> bool:
    """Delete what is in `folder`; what lies too deep moves up to `top` and goes from there."""
    found = True
    while found:  # what is deleted while a folder is read may hide another name
        found = False
        with os.scandir(folder) as entries:  # a name at a time: its owner may have made millions
            for entry in entries:
                found = True
                if time.monotonic() > deadline or not _delete(
                    folder, entry.name, top, depth, deadline
                ):
                    return False
    return True


def _delete(folder: int, name: str, top: int, depth: int, deadline: float) -> bool:
    """Delete one of what is in `folder`, as `_empty`."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=folder)
    elif depth == LEVELS_AT_ONCE:
        os.rename(name, secrets.token_hex(16), src_dir_fd=folder, dst_dir_fd=top)
    else:
        with _folder(name, dir_fd=folder) as inner:
            if not _empty(inner, top, depth + 1, deadline):
                return False
        os.rmdir(name, dir_fd=folder)
    return True


@contextlib.contextmanager
def _folder(path: Path | str, *, dir_fd: int | None = None) -> Iterator[int]:
    """A descriptor of the folder `path` itself, never of what a link there points to."""
    descriptor = os.open(path, _FOLDER, dir_fd=dir_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def remove_tree(folder: Path) -> None:
    """Delete a folder of ours with everything in it. Raises OSError."""
    shutil.rmtree(folder)


def open_below(folder: Path, path: str) -> BinaryIO:
    """Open `path`, relative with '/', below `folder`, whose owner may be hostile.

    No link is followed from `folder` on, and nothing waits for a writer. Every
    part of `path` is a name. Raises OSError.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    *parents, name = path.split("/")
    for parent in parents:
        descriptor = _step(descriptor, parent, os.O_DIRECTORY)
    return os.fdopen(_step(descriptor, name, os.O_NONBLOCK), "rb")


def _step(descriptor: int, name: str, flags: int) -> int:
    """Open `name` in the folder `descriptor`, which is closed whatever happens."""
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | flags, dir_fd=descriptor)
    finally:
        os.close(descriptor)


def machine_registry() -> Registry | None:
    """There is none here."""
    return None


def drop_network() -> bool:
    """Leave every network for good (Linux, as root); False where that isn't possible."""
    if sys.platform != "linux" or not is_root():
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.unshare(CLONE_NEWNET) == 0)


def expendable(pid: int) -> None:
    """Let a child go before this process when memory is short, however this one is spared."""
    if sys.platform != "linux" or not _is_spared():
        return
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_bytes(b"0")


class ProcessHandle:
    """One life of a process: nothing that is sent reaches who gets its number later.

    What is found out about the process while it is held is true of it, or it has
    ended. Where the kernel gives no handle (Linux before 5.3, others; no memory,
    no descriptor left), the number has to do. Raises ProcessLookupError: none has it.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._handle: int | None = None
        try:
            self._handle = os.pidfd_open(pid)
        except ProcessLookupError:
            raise
        except (OSError, AttributeError):
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            os.close(self._handle)

    def send(self, number: signal.Signals) -> None:
        """Send a signal. Raises OSError: it is gone, or may not be signalled."""
        if self._handle is None:
            os.kill(self._pid, number)
        else:
            signal.pidfd_send_signal(self._handle, number)

    def stop(self) -> None:
        """Let it do nothing more. Raises OSError as `send`."""
        self.send(signal.SIGSTOP)

    def kill(self) -> None:
        """End it at once, also when it is stopped. Raises OSError as `send`."""
        self.send(signal.SIGKILL)


@functools.cache
def _is_spared() -> bool:
    """Whether the service manager has made the kernel spare this process."""
    try:
        return int(Path("/proc/self/oom_score_adj").read_bytes()) < 0
    except (OSError, ValueError):
        return False


class Peer:
    """The process at the other end of a local connection, as the kernel names it."""

    def __init__(self, pid: int, uid: int) -> None:
        self.pid = pid
        self.uid = uid
        self._handle: int | None = None
        with contextlib.suppress(OSError, AttributeError):
            self._handle = os.pidfd_open(pid)

    def kill(self) -> bool:
        """SIGKILL that very process; False where it can't be told from a later one."""
        if self._handle is None or self._owner() != self.uid:
            return False
        try:
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        except OSError:
            return False
        return True

    def _owner(self) -> int | None:
        """A pid that was given away before it was opened belongs to somebody else."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        found = re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE)
        return int(found[1]) if found else None

    def close(self) -> None:
        """Give the handle back."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def peer_of(connection: socket.socket) -> Peer:
    """Who connected, or listens, at the other end. Raises OSError: not a local socket."""
    size = struct.calcsize("3i")
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, uid, _gid = struct.unpack("3i", found)
    return Peer(pid=pid, uid=uid)


def watchdog_s() -> float | None:
    """How often the service manager wants to hear from this process, None: never.

    As sd_watchdog_enabled(3): the variables may have been meant for another process.
    """
    given, whom = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if whom not in {"", str(os.getpid())} or not given.isdecimal() or int(given) == 0:
        return None
    return int(given) / 1e6
