"""What the two services are: names, command lines, order, recovery, folders. Pure."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from agent.host import rights
from agent.host.naming import BOOT_GUARD, GUARDIAN
from agent.layout import Layout

# In the list of groups, before every service that has none: engines, as a rule.
GROUP = "HoldfastBoot"

# Restart after 5 s as on Linux, then more slowly; a day without a fault counts anew.
# The last action goes on for ever: a guardian that is killed again and again comes back.
RESTART_AFTER_MS = (5_000, 5_000, 30_000)
RESET_AFTER_S = 86_400

# Windows shuts down this much later at most, for a trial to be paused in order.
PRESHUTDOWN_MS = 20_000

# A control of the boot guard's own: end, although engines depend on you. A stop is
# refused for their sake; what a service does by itself isn't, and they run on.
LET_GO = 200

# Who may what with either service: [MS-DTYP] 2.5.1, letters as of service objects.
# As Windows has it by default, but for CR (controls of a service's own), which there
# every user who is logged on has.
RIGHTS = (
    "D:(A;;CCLCSWRPWPDTLOCRRC;;;SY)(A;;CCDCLCSWRPWPDTLOCRSDRCWDWO;;;BA)"
    "(A;;CCLCSWLORC;;;IU)(A;;CCLCSWLORC;;;SU)"
)

TRUSTED_OWNERS = ("S-1-5-18", "S-1-5-32-544")  # SYSTEM, Administrators
REPARSE_POINT = 0x400  # FILE_ATTRIBUTE_REPARSE_POINT

STOPPED = 1  # SERVICE_STOPPED
NO_FAULT = frozenset({0, 1077})  # ERROR_SERVICE_NEVER_STARTED: not since Windows started

# What SYSTEM keeps of its privileges: another account for the fetcher, its own
# priority in a trial, links in trees. Everything else is given up at start.
GUARDIAN_PRIVILEGES = (
    "SeAssignPrimaryTokenPrivilege",
    "SeChangeNotifyPrivilege",
    "SeCreateSymbolicLinkPrivilege",
    "SeImpersonatePrivilege",
    "SeIncreaseBasePriorityPrivilege",
    "SeIncreaseQuotaPrivilege",
    "SeTcbPrivilege",
)
BOOT_GUARD_PRIVILEGES = ("SeChangeNotifyPrivilege",)

Severity = Literal["info", "warning", "error"]
_SEVERITY: dict[str, Severity] = {"warning": "warning", "error": "error", "critical": "error"}
_TOLD = frozenset({"guardian_started", "boot_guarded"})  # besides what goes wrong


class Service(NamedTuple):
    """One service, as the service manager is told."""

    name: str
    title: str
    description: str
    module: str
    group: str | None
    needs: tuple[str, ...]
    privileges: tuple[str, ...]


SERVICES = (
    Service(
        BOOT_GUARD,
        "Holdfast boot guard",
        "Counts the start of an update's trial, and goes back when none is left, before the "
        "protected engine starts. Engines that depend on it start after it.",
        "service.windows.bootguard",
        GROUP,
        (),
        BOOT_GUARD_PRIVILEGES,
    ),
    Service(
        GUARDIAN,
        "Holdfast agent",
        "Keeps the security engine up to date, watches it after each update, and goes back "
        "when the update hurts. Protection goes on while this service is stopped.",
        "service.windows.guardian",
        None,
        (BOOT_GUARD,),
        GUARDIAN_PRIVILEGES,
    ),
)


def command_line(python: str, service: Service, config: str) -> str:
    """What the service manager runs: isolated, so that no variable leads it elsewhere."""
    return subprocess.list2cmdline([python, "-I", "-m", service.module, "--config", config])


def with_group(groups: Sequence[str]) -> list[str]:
    """The list of groups with ours at its end; the others stay where they are."""
    return [*groups, GROUP] if GROUP not in groups else list(groups)


def without_group(groups: Sequence[str]) -> list[str]:
    """The list of groups without ours."""
    return [group for group in groups if group != GROUP]


def is_wanted(*, state: int, exit_code: int) -> bool:
    """Does a service run, or would it, had it not failed? Windows may be about to restart it."""
    return state != STOPPED or exit_code not in NO_FAULT


def folders(layout: Layout, *, config_folder: str) -> dict[str, str]:
    """{folder: its rights}, a folder before what is in it."""
    return {
        config_folder: rights.configuration_folder(),
        str(layout.state): rights.shared_folder(),
        str(layout.stager_trust): rights.private_folder(),
        str(layout.fetcher_trust): rights.fetcher_folder(),
        str(layout.incoming): rights.fetcher_folder(),
        str(layout.cache): rights.fetcher_folder(),
        str(layout.server): rights.fetcher_folder(),
    }


def strays(names: Iterable[str], *, config: str) -> list[str]:
    """Which files and folders beside the configuration aren't Holdfast's."""
    ours = {config.lower(), "root.json", "state", "log"}
    return sorted(name for name in names if name.lower() not in ours)


def is_configured_by(command_line: str, config: str) -> bool:
    """Whether a service of ours has the configuration `config` already."""
    return command_line.rstrip('"').lower().endswith(config.lower())


def is_trusted(*, owner: str, own: str, attributes: int) -> bool:
    """Whether a folder is administration's, or this account's own, and itself no link."""
    return owner in {*TRUSTED_OWNERS, own} and not attributes & REPARSE_POINT


def severity(line: str) -> Severity | None:
    """What a line of the log is for the event log; None: nothing.

    What isn't an event is what a program says before its log is set up.
    """
    try:
        event = json.loads(line)
    except ValueError:
        return "error" if line.strip() else None
    if not isinstance(event, dict):
        return "error"
    if event.get("event") in _TOLD:
        return "info"
    return _SEVERITY.get(str(event.get("level")))
