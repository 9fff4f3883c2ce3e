"""Windows: the fetcher's token, and who may what in its folders and ours."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import win32api
import win32con
import win32security

from agent.errors import ConfigError
from agent.host import rights
from agent.host.windows_errors import as_os_error

if sys.platform != "win32":
    raise ImportError("agent.host.posix is the other systems' part")

SYSTEM_SID = "S-1-5-18"
FETCHER_NAMES = frozenset({"holdfast", "localservice"})  # the default, and what it means
WRITE_RESTRICTED = 0x8  # winnt.h: restricting SIDs count for writing alone
DISABLE_MAX_PRIVILEGE = 0x1
LOGON_ID = 0xC0000000  # SE_GROUP_LOGON_ID
RESTRICTING_SIDS = ("S-1-1-0", "S-1-5-33")  # Everyone, WRITE RESTRICTED: what services get


def is_root() -> bool:
    """Whether this is the service: SYSTEM, who may start the fetcher as somebody else."""
    return user_sid() == SYSTEM_SID


def user_sid() -> str:
    """The account this process runs as."""
    token = win32security.OpenProcessToken(win32api.GetCurrentProcess(), win32con.TOKEN_QUERY)
    sid, _ = win32security.GetTokenInformation(token, win32security.TokenUser)
    return str(win32security.ConvertSidToStringSid(sid))


@dataclass(frozen=True)
class User:
    """A token to run a child with."""

    token: Any


_users: dict[str, User] = {}


def user_of(name: str) -> User | None:
    """What a fetcher runs as: None when this isn't the service or `name` is empty.

    LocalService, without privileges, and restricted for writing to what its own
    SID may write. Raises ConfigError: another name.
    """
    if not name or not is_root():
        return None
    if name.lower() not in FETCHER_NAMES:
        raise ConfigError(
            f"fetcher_user: {name!r}; on Windows it is 'LocalService', or '' for the guardian's own"
        )
    if "fetcher" not in _users:
        with as_os_error():
            account = win32security.LogonUser(
                "LocalService", "NT AUTHORITY", "", win32con.LOGON32_LOGON_SERVICE, 0
            )
            _users["fetcher"] = User(restricted(account))
    return _users["fetcher"]


def restricted(token: Any) -> Any:
    """`token` without privileges, that writes only where the fetcher's own SID may, too."""
    own = (rights.service_sid(rights.FETCHER_NAME), *RESTRICTING_SIDS, *_logon_sid(token))
    sids: Any = [(win32security.ConvertStringSidToSid(sid), 0) for sid in own]
    groups = win32security.GetTokenInformation(token, win32security.TokenGroups)
    ours = win32security.ConvertStringSidToSid("S-1-5-32-544")  # Administrators
    denied: Any = [(sid, 0) for sid, _ in groups if sid == ours]
    no_privilege: Any = []
    return win32security.CreateRestrictedToken(
        token, DISABLE_MAX_PRIVILEGE | WRITE_RESTRICTED, denied, no_privilege, sids
    )


def _logon_sid(token: Any) -> tuple[str, ...]:
    """The session's own SID: without it a program can't use the window station it is given."""
    groups = win32security.GetTokenInformation(token, win32security.TokenGroups)
    found = [sid for sid, flags in groups if flags & LOGON_ID == LOGON_ID]
    return tuple(str(win32security.ConvertSidToStringSid(sid)) for sid in found[:1])


def protect(folder: Path, sddl: str) -> None:
    """Give `folder` its owner and rights; what lies in it inherits them. Raises OSError."""
    wanted = win32security.ConvertStringSecurityDescriptorToSecurityDescriptor(sddl, 1)
    with as_os_error(folder):
        win32security.SetNamedSecurityInfo(
            str(folder),
            win32security.SE_FILE_OBJECT,
            win32security.DACL_SECURITY_INFORMATION
            | win32security.PROTECTED_DACL_SECURITY_INFORMATION
            | win32security.OWNER_SECURITY_INFORMATION,
            wanted.GetSecurityDescriptorOwner(),
            None,
            wanted.GetSecurityDescriptorDacl(),
            None,
        )


def give_to(folder: Path, user: User) -> None:
    """Let the fetcher write in `folder`."""
    del user  # there is one
    protect(folder, rights.fetcher_folder())


@contextlib.contextmanager
def as_fetcher() -> Iterator[None]:
    user = _users.get("fetcher")
    if user is None:
        yield
        return
    with as_os_error():
        win32security.ImpersonateLoggedOnUser(user.token)
    try:
        yield
    finally:
        win32security.RevertToSelf()
