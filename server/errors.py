"""What can go wrong in the Security Server, besides what the feed raises.

ServerError
├── ConfigError    the configuration can't be used; names file, key, expected form
├── StorageError   the database can't be used, or is newer than this program
├── RefusedError   a request that this server turns down: status, code and sentence
└── BusyError      another process has the state folder, or another sync runs
"""

from __future__ import annotations


class ServerError(Exception):
    """Base of everything the server raises on purpose; `code` is its stable reason code."""

    code = "server_error"


class ConfigError(ServerError):
    """The configuration can't be used."""

    code = "config_invalid"


class StorageError(ServerError):
    """The database can't be used."""

    code = "storage_unusable"


class BusyError(ServerError):
    """Somebody else is at it."""

    code = "busy"


class RefusedError(ServerError):
    """A request is turned down.

    status is the HTTP answer, code the stable reason code; retry_after_s is
    said where the same request may succeed later.
    """

    def __init__(
        self, sentence: str, *, status: int, code: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


def missing(what: str, which: str) -> RefusedError:
    """404: there is no such thing."""
    return RefusedError(f"there is no {what} {which!r}", status=404, code="not_found")


def conflict(sentence: str, *, code: str = "conflict") -> RefusedError:
    """409: not as things stand."""
    return RefusedError(sentence, status=409, code=code)
