"""agentctl protect on Windows: have an engine's service start after the boot guard's.

The service gets one dependency more. Nothing is started or stopped.
"""

from __future__ import annotations

import sys
from typing import Any

from agent.ctl.client import AskError
from agent.host import windows_services as services
from agent.host.naming import BOOT_GUARD

if sys.platform != "win32":
    raise ImportError("agent.ctl.protect is the other systems' part")


def protect(unit: str) -> dict[str, Any]:
    """Have the service `unit` depend on the boot guard; returns what was done.

    Raises AskError: no administrator, no such service, or no boot guard to wait for.
    """
    try:
        return _told(unit, changed=services.protect(unit), protected=True)
    except OSError as error:
        raise _refused(error) from error


def unprotect(unit: str) -> dict[str, Any]:
    """Take that back. Raises AskError, as `protect`."""
    try:
        return _told(unit, changed=services.unprotect(unit), protected=False)
    except OSError as error:
        raise _refused(error) from error


def sentence(done: dict[str, Any]) -> str:
    """What was done, in words."""
    unit, already = done["unit"], "" if done["changed"] else " already"
    if not done["protected"]:
        return f"{unit} doesn't wait for {BOOT_GUARD}{already and ', as before'}"
    return f"{unit} waits for {BOOT_GUARD}{already} when it starts\nundo: {done['undo']}"


def _told(unit: str, *, changed: bool, protected: bool) -> dict[str, Any]:
    undo = f"agentctl protect {'--remove ' if protected else ''}{unit}"
    return {"unit": unit, "protected": protected, "changed": changed, "undo": undo}


def _refused(error: OSError) -> AskError:
    text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if isinstance(error, PermissionError):
        text += (
            "; run it as administrator. To a service that Windows itself protects only its own "
            f"installer adds {BOOT_GUARD}"
        )
    elif error.filename == BOOT_GUARD:
        text += "; make the services first: agentctl-service.cmd"
    return AskError(text, reachable=True)
