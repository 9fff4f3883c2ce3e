r"""Names on Windows: those of our services, and what is derived from others. Pure.

* A socket's path becomes a pipe's name: pipes live in a namespace of their own.
* A file that can't be deleted while it is open is moved aside under a name
  that nobody uses, and deleted at the next boot.
* A boot is told from the one before by the kernel's own figures.
* An engine's service names the boot guard among those that it needs.
"""

from __future__ import annotations

import hashlib
import ntpath
from collections.abc import Callable, Sequence

GUARDIAN = "HoldfastAgent"
BOOT_GUARD = "HoldfastBootGuard"
PIPES = "\\\\.\\pipe\\"
ASIDE_PREFIX = ".gone-"


def pipe_name(path: str) -> str:
    """The pipe that stands for the socket `path`; another folder, another pipe."""
    folder, name = ntpath.split(ntpath.normcase(ntpath.normpath(path)))
    place = hashlib.sha256(folder.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{PIPES}holdfast-{place}-{ntpath.splitext(name)[0]}"


def aside_name(name: str, *, token: Callable[[], str]) -> str:
    """A name for `name` once it is moved aside: short, so that no path outgrows its limit."""
    return f"{ASIDE_PREFIX}{token()}-{name[-32:]}"


def boot_id(*, count: int | None, booted: int, bias: int) -> str:
    """Another text after every boot, the same one until the next.

    booted is the kernel's boot time in units of 100 ns since 1601. It moves
    when the clock is set, and by the same amount bias does: their difference
    stands still. count is how often Windows was started, where it says so: a
    machine without a clock's battery boots at the same time each day.
    """
    return f"boot-{count or 0}-{booted - bias:x}"


def same_path(one: str, other: str) -> bool:
    r"""Whether two absolute paths name one place, with or without the \\?\ prefix."""
    return _plain(one) == _plain(other)


def _plain(path: str) -> str:
    path = path.removeprefix("\\\\?\\")
    if path.upper().startswith("UNC\\"):
        path = "\\\\" + path[4:]
    return ntpath.normcase(ntpath.normpath(path))


def with_boot_guard(needs: Sequence[str]) -> list[str]:
    """An engine's dependencies, the boot guard the first."""
    return [BOOT_GUARD, *without_boot_guard(needs)]


def without_boot_guard(needs: Sequence[str]) -> list[str]:
    """An engine's dependencies without the boot guard; names have no case."""
    return [name for name in needs if name.lower() != BOOT_GUARD.lower()]
