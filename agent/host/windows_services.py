"""Services of Windows, and which of them wait for the boot guard.

Its name and the lists are in agent.host.naming.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import win32service

from agent.host import naming
from agent.host.windows_errors import as_os_error

if sys.platform != "win32":
    raise ImportError("services of this kind are Windows'")


def protect(engine: str) -> bool:
    """Have the service `engine` start after the boot guard; whether it didn't before.

    Raises OSError: no such service, one of ours, or no boot guard: what depends on a
    service that isn't there doesn't start at all.
    """
    if engine.lower() in {naming.GUARDIAN.lower(), naming.BOOT_GUARD.lower()}:
        raise OSError(f"{engine} is Holdfast's own; name the service of the engine to protect")
    with service_manager() as manager:
        with opened(manager, naming.BOOT_GUARD):
            pass
        return change_needs(manager, engine, naming.with_boot_guard)


def unprotect(engine: str) -> bool:
    """Take that back; whether there was anything. Raises OSError: no such service."""
    with service_manager() as manager:
        return change_needs(manager, engine, naming.without_boot_guard)


@contextlib.contextmanager
def service_manager() -> Iterator[Any]:
    """The service manager, for whatever an administrator may. Raises OSError."""
    with as_os_error("the service manager"):
        handle = win32service.OpenSCManager(None, None, win32service.SC_MANAGER_ALL_ACCESS)
    try:
        yield handle
    finally:
        win32service.CloseServiceHandle(handle)


@contextlib.contextmanager
def opened(manager: Any, name: str, access: int = win32service.SERVICE_ALL_ACCESS) -> Iterator[Any]:
    """A service by its name. Raises OSError: there is none, or it is out of reach."""
    with as_os_error(name):
        handle = win32service.OpenService(manager, name, access)
        try:
            yield handle
        finally:
            win32service.CloseServiceHandle(handle)


def change_needs(manager: Any, name: str, change: Any) -> bool:
    """Whether there was anything to change. Raises OSError: no such service."""
    access = win32service.SERVICE_QUERY_CONFIG | win32service.SERVICE_CHANGE_CONFIG
    with opened(manager, name, access) as handle:
        needs = list(win32service.QueryServiceConfig(handle)[6] or [])
        keep: Any = win32service.SERVICE_NO_CHANGE
        wanted = change(needs)
        # An empty list would mean "as it is": two zeros are an empty one.
        win32service.ChangeServiceConfig(
            handle, keep, keep, keep, None, None, False, wanted or [""], None, None, None
        )
    return bool(wanted != needs)
