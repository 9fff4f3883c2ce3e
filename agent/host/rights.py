r"""Who may what on Windows, as security descriptors in SDDL. Pure.

The service runs as SYSTEM. Its folders inherit nothing from ProgramData, where
every user may create files:

 * SYSTEM and Administrators may everything, and own it.
 * Engines, as any user, read the state and write nothing. What is private in it
   says so: `trust\stager`, and files that are made with mode 0600.
 * The fetcher reads the configuration and writes three folders. It is
   LocalService with a token that is restricted for writing, so a right counts
   only if both LocalService and the fetcher's own SID have it.

SDDL: [MS-DTYP] 2.5.1; letters as in docs.microsoft.com, "SID Strings".
"""

from __future__ import annotations

import hashlib
import struct

SYSTEM = "SY"
ADMINISTRATORS = "BA"
USERS = "BU"
LOCAL_SERVICE = "LS"
OWNER_RIGHTS = "OW"
INTERACTIVE = "IU"
SERVICES = "SU"

FULL = "FA"
READ = "FRFX"
MODIFY = "0x1301bf"  # all but changing rights, owner, and children by another's leave
FILL = "0x1200af"  # what lies in the folder, not the folder itself: no DELETE on it

# Of a pipe: read, write data and attributes. Not FILE_APPEND_DATA, which on a
# pipe means making another instance of it, and so answering for the guardian.
TALK = "0x12019b"
TALK_RIGHTS = int(TALK, 16)

# A trustee that no account has: the name's digest, as Windows derives service SIDs.
FETCHER_NAME = "HoldfastFetcher"


def service_sid(name: str) -> str:
    """The SID of the service `name`: S-1-5-80 and the SHA-1 of the name in capitals."""
    digest = hashlib.sha1(name.upper().encode("utf-16-le"), usedforsecurity=False).digest()
    return "-".join(("S-1-5-80", *(str(number) for number in struct.unpack("<5I", digest))))


def _allow(rights: str, *who: str, inherited: bool = True, below_only: bool = False) -> str:
    flags = "OICI" if inherited or below_only else ""
    flags += "IO" if below_only else ""
    return "".join(f"(A;{flags};{rights};;;{item})" for item in who)


_ADMINISTRATION = _allow(FULL, SYSTEM, ADMINISTRATORS)
_PRIVATE = f"O:BAD:PAI{_ADMINISTRATION}"


def private_folder() -> str:
    """For SYSTEM and Administrators alone."""
    return _PRIVATE


def shared_folder() -> str:
    """Everybody reads what is in it, unless that says otherwise: the state."""
    return _PRIVATE + _allow(READ, USERS)


def fetcher_folder() -> str:
    """The fetcher writes in it. It can't remove the folder, nor does it own it."""
    who = (LOCAL_SERVICE, service_sid(FETCHER_NAME))
    return _PRIVATE + _allow(FILL, *who, inherited=False) + _allow(MODIFY, *who, below_only=True)


def configuration_folder() -> str:
    """Proxies' passwords are in it: nobody reads it but administration and the fetcher."""
    return _PRIVATE + _allow(READ, LOCAL_SERVICE)


def pipe(*, owner: str, everybody: bool, group: str = "") -> str:
    """A named pipe: administration's, `group`'s, or everybody's on this machine; SIDs.

    Nobody is denied: administrators over SSH or WinRM are network logons, on this machine
    all the same. That the pipe isn't served over the network is PIPE_REJECT_REMOTE_CLIENTS'.
    """
    allowed = _allow(FULL, SYSTEM, ADMINISTRATORS, OWNER_RIGHTS, inherited=False)
    if everybody:
        allowed += _allow(TALK, INTERACTIVE, SERVICES, USERS, inherited=False)
    if group:
        allowed += _allow(TALK, group, inherited=False)
    return f"O:{owner}D:P{allowed}"
