"""Tell the service manager about the two services, and give their folders rights.

A service that runs goes on with the program that it was started from: a change
of its command line holds from its next start on.
"""

from __future__ import annotations

import contextlib
import sys
import time
import winreg
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pywintypes
import win32con
import win32file
import win32security
import win32service
import winerror

from agent.host import naming, rights
from agent.host import windows_services as services
from agent.host.windows_errors import as_os_error
from agent.host.windows_files import SHARE_ALL
from agent.host.windows_users import protect as give_rights
from agent.host.windows_users import user_sid
from agent.layout import Layout
from service.windows import plan
from service.windows.plan import Service

if sys.platform != "win32":
    raise ImportError("services of this kind are Windows'")

ORDER = r"SYSTEM\CurrentControlSet\Control\ServiceGroupOrder"
EVENTS = r"SYSTEM\CurrentControlSet\Services\EventLog\Application"
LOOK = win32con.READ_CONTROL | 0x80  # FILE_READ_ATTRIBUTES
# A junction itself, not what it leads to: FILE_FLAG_OPEN_REPARSE_POINT.
ITSELF = win32con.FILE_FLAG_BACKUP_SEMANTICS | 0x00200000
ENDS_WITHIN_S = 60.0  # a trial is paused in order
PROCESS_ENDS_WITHIN_S = 10.0  # after its service has said that it stopped
NOT_TO_BE_ASKED = {winerror.ERROR_SERVICE_NOT_ACTIVE, winerror.ERROR_SERVICE_CANNOT_ACCEPT_CTRL}
GONE = {winerror.ERROR_SERVICE_DOES_NOT_EXIST, winerror.ERROR_SERVICE_MARKED_FOR_DELETE}


def install(layout: Layout, config: Path, *, python: str) -> None:
    """Make the folders and both services, or bring them up to date. Raises OSError."""
    prepare_folders(layout, config.parent)
    _change_groups(plan.with_group)
    with services.service_manager() as manager:
        for service in plan.SERVICES:
            _install(manager, service, plan.command_line(python, service, str(config)))


def prepare_folders(layout: Layout, config_folder: Path) -> None:
    """Make the folders with their rights; what is in them stays. Raises OSError."""
    claim(config_folder)
    for folder, sddl in plan.folders(layout, config_folder=str(config_folder)).items():
        Path(folder).mkdir(parents=True, exist_ok=True)
        give_rights(Path(folder), sddl)


def claim(folder: Path) -> None:
    """Have the configuration's folder be administration's: made with its rights, or found so.

    Every user may make folders in ProgramData. One of our name that isn't
    administration's, or leads elsewhere, is moved aside: whoever made it could choose
    what is trusted. Raises OSError, as FileExistsError: somebody makes it at this moment.
    """
    try:
        if _is_administrations(folder):
            return
    except FileNotFoundError:
        folder.parent.mkdir(parents=True, exist_ok=True)
    else:
        aside = folder.with_name(f"{folder.name}.untrusted-{int(time.time())}")
        folder.rename(aside)
        print(f"{folder} wasn't administration's; it is {aside} now, and isn't used")
    security = pywintypes.SECURITY_ATTRIBUTES()
    security.SECURITY_DESCRIPTOR = _descriptor(rights.configuration_folder())
    with as_os_error(folder):  # with its rights at once: nobody puts a file into it in between
        win32file.CreateDirectory(str(folder), security)


def _is_administrations(folder: Path) -> bool:
    """Asked of a handle, so of one thing. Raises FileNotFoundError, OSError."""
    with as_os_error(folder):
        try:
            handle: Any = win32file.CreateFile(
                str(folder), LOOK, SHARE_ALL, None, win32con.OPEN_EXISTING, ITSELF, None
            )
        except pywintypes.error as error:
            if error.winerror == winerror.ERROR_ACCESS_DENIED:
                return False  # who may take it away may rename it all the same
            raise
        try:
            attributes = win32file.GetFileInformationByHandle(handle)[0]
            found = win32security.GetSecurityInfo(
                handle, win32security.SE_FILE_OBJECT, win32security.OWNER_SECURITY_INFORMATION
            )
        finally:
            handle.Close()
    owner = str(win32security.ConvertSidToStringSid(found.GetSecurityDescriptorOwner()))
    return plan.is_trusted(owner=owner, own=user_sid(), attributes=attributes)


def _descriptor(sddl: str) -> Any:
    return win32security.ConvertStringSecurityDescriptorToSecurityDescriptor(sddl, 1)


def wanted() -> list[str]:
    """Our services that run, or would, had they not failed. Raises OSError."""
    found = []
    for name, handle in _ours(plan.SERVICES):
        with as_os_error(name):
            status: Any = win32service.QueryServiceStatus(handle)
        if plan.is_wanted(state=status[1], exit_code=status[3]):
            found.append(name)
    return found


def end() -> None:
    """Stop both services, whatever depends on the boot guard.

    Raises OSError: one doesn't end in time, or a service of somebody else depends on the agent.
    """
    for name, handle in _ours(reversed(plan.SERVICES)):
        with as_os_error(name):
            _end(handle, name)


def start(names: Iterable[str]) -> None:
    """Start services of ours that don't run. Raises OSError."""
    with services.service_manager() as manager:
        for name in names:
            with services.opened(manager, name) as handle:
                try:
                    win32service.StartService(handle, None)
                except pywintypes.error as error:
                    if error.winerror != winerror.ERROR_SERVICE_ALREADY_RUNNING:
                        raise


def command_lines() -> list[str]:
    """What the service manager runs for those of our services that there are. Raises OSError."""
    return [str(win32service.QueryServiceConfig(handle)[3]) for _, handle in _ours(plan.SERVICES)]


def remove() -> list[str]:
    """End both services and take them away; engines first lose their dependency.

    Returns those engines. Raises OSError.
    """
    with services.service_manager() as manager:
        freed = [name for name in _dependents(manager) if name != naming.GUARDIAN]
        for name in freed:
            services.change_needs(manager, name, naming.without_boot_guard)
    end()
    with services.service_manager() as manager:
        for service in reversed(plan.SERVICES):
            _remove(manager, service.name)
    _change_groups(plan.without_group)
    return freed


def _ours(which: Iterable[Service]) -> Iterator[tuple[str, Any]]:
    """Name and handle of each of the services that there is. Raises OSError."""
    with services.service_manager() as manager:
        for service in which:
            try:
                with services.opened(manager, service.name) as handle:
                    yield service.name, handle
            except OSError as error:
                if error.winerror not in GONE:
                    raise


def _end(handle: Any, name: str) -> None:
    """Stop a service and see its process off. Raises OSError: it doesn't end in time."""
    status: Any = win32service.QueryServiceStatusEx(handle)
    until = time.monotonic() + ENDS_WITHIN_S
    while (state := win32service.QueryServiceStatus(handle)[1]) != win32service.SERVICE_STOPPED:
        if time.monotonic() > until:
            raise TimeoutError(f"{name} didn't end within {ENDS_WITHIN_S:.0f} s")
        if state != win32service.SERVICE_STOP_PENDING:
            _ask_to_end(handle, name)
        time.sleep(0.1)
    with contextlib.suppress(psutil.Error):  # it may have gone, or be beyond our rights
        if status["ProcessId"]:
            psutil.Process(status["ProcessId"]).wait(PROCESS_ENDS_WITHIN_S)


def _ask_to_end(handle: Any, name: str) -> None:
    depended_on = winerror.ERROR_DEPENDENT_SERVICES_RUNNING
    try:
        win32service.ControlService(handle, win32service.SERVICE_CONTROL_STOP)
    except pywintypes.error as error:
        if error.winerror == depended_on and name == naming.BOOT_GUARD:
            win32service.ControlService(handle, plan.LET_GO)
        elif error.winerror not in NOT_TO_BE_ASKED:
            raise


def _install(manager: Any, service: Service, command: str) -> None:
    create: Any = win32service.CreateService
    change: Any = win32service.ChangeServiceConfig
    kind = win32service.SERVICE_WIN32_OWN_PROCESS
    start, errors = win32service.SERVICE_AUTO_START, win32service.SERVICE_ERROR_NORMAL
    shape = (kind, start, errors, command, service.group, False, list(service.needs), None, None)
    access = win32service.SERVICE_ALL_ACCESS
    with as_os_error(service.name):
        try:
            handle = create(manager, service.name, service.title, access, *shape)
        except pywintypes.error as error:
            if error.winerror != winerror.ERROR_SERVICE_EXISTS:
                raise
            with services.opened(manager, service.name) as found:
                change(found, *shape, service.title)
        else:
            win32service.CloseServiceHandle(handle)
        with services.opened(manager, service.name) as handle:
            _describe(handle, service)
    _register_events(service.name)


def _describe(handle: Any, service: Service) -> None:
    win32service.SetServiceObjectSecurity(
        handle, win32security.DACL_SECURITY_INFORMATION, _descriptor(plan.RIGHTS)
    )
    actions = [(win32service.SC_ACTION_RESTART, after) for after in plan.RESTART_AFTER_MS]
    failure = {
        "ResetPeriod": plan.RESET_AFTER_S,
        "RebootMsg": "",
        "Command": "",
        "Actions": actions,
    }
    for kind, value in (
        (win32service.SERVICE_CONFIG_DESCRIPTION, service.description),
        (win32service.SERVICE_CONFIG_FAILURE_ACTIONS, failure),
        (win32service.SERVICE_CONFIG_FAILURE_ACTIONS_FLAG, True),  # exit codes are failures too
        (win32service.SERVICE_CONFIG_PRESHUTDOWN_INFO, plan.PRESHUTDOWN_MS),
        (win32service.SERVICE_CONFIG_REQUIRED_PRIVILEGES_INFO, list(service.privileges)),
    ):
        try:
            win32service.ChangeServiceConfig2(handle, kind, value)
        except pywintypes.error as error:
            print(f"{service.name}: setting {kind} isn't supported here: {error.strerror}")


def _register_events(name: str) -> None:
    """Where the event viewer finds the text of our entries: pywin32 has it."""
    import servicemanager  # noqa: PLC0415 - for its place alone

    with winreg.CreateKey(winreg.HKEY_LOCAL_MACHINE, rf"{EVENTS}\{name}") as key:
        winreg.SetValueEx(key, "EventMessageFile", 0, winreg.REG_EXPAND_SZ, servicemanager.__file__)
        winreg.SetValueEx(key, "TypesSupported", 0, winreg.REG_DWORD, 7)


def _remove(manager: Any, name: str) -> None:
    try:
        with services.opened(manager, name) as handle:
            win32service.DeleteService(handle)
    except OSError as error:
        if error.winerror not in GONE:
            raise
    with contextlib.suppress(FileNotFoundError):
        winreg.DeleteKey(winreg.HKEY_LOCAL_MACHINE, rf"{EVENTS}\{name}")


def _dependents(manager: Any) -> list[str]:
    try:
        with services.opened(manager, naming.BOOT_GUARD) as handle:
            found = win32service.EnumDependentServices(handle, win32service.SERVICE_STATE_ALL)
    except OSError as error:
        if error.winerror in GONE:
            return []
        raise
    return [str(entry[0]) for entry in found]


def _change_groups(change: Any) -> None:
    access = winreg.KEY_QUERY_VALUE | winreg.KEY_SET_VALUE
    with winreg.CreateKeyEx(winreg.HKEY_LOCAL_MACHINE, ORDER, 0, access) as key:
        try:
            groups, _ = winreg.QueryValueEx(key, "List")
        except FileNotFoundError:
            groups = []
        wanted = change(groups)
        if wanted != groups:
            winreg.SetValueEx(key, "List", 0, winreg.REG_MULTI_SZ, wanted)
