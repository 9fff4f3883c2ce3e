"""How serverctl reaches a server: this machine's own, or one that is named.

A running server leaves its address, its authority and a token of this machine
in its state folder, readable by its own user and root alone.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from feed import durable
from server.errors import ConfigError


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Where and as whom. authority is PEM, None for the system's own trust.

    certificate, PEM: it is the server's own, whatever name it is for.
    """

    url: str
    token: str
    authority: str | None = None
    certificate: str | None = None

    def __repr__(self) -> str:
        return f"Access(url={self.url!r}, token=…)"


def leave(path: Path, access: Access) -> None:
    """What a server that starts leaves for serverctl. Raises OSError."""
    durable.replace(path, msgspec.json.encode(access))


def follow(path: Path, certificate: str | None) -> None:
    """The server shows this certificate now. Raises ConfigError, OSError."""
    before = local(path)
    if before.certificate != certificate:
        leave(path, msgspec.structs.replace(before, certificate=certificate))


def local(path: Path) -> Access:
    """What the server of this machine left.

    Raises ConfigError: nothing is there, or it isn't this user's to read.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Access)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no server has run with this state folder; serverctl run starts one, "
            "--server URL with --token-file FILE asks another machine's"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; run serverctl as the server's user or as root"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: can't be read ({error}); the server writes it anew when it starts"
        ) from error


def remote(url: str, token_file: Path, authority: Path | None) -> Access:
    """Another machine's server, with a token made by `serverctl tokens create`.

    Raises ConfigError: a file can't be read.
    """
    try:
        return Access(
            url=url.rstrip("/"),
            token=token_file.read_text(encoding="ascii").strip(),
            authority=authority.read_text(encoding="ascii") if authority else None,
        )
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{error}; give --token-file and --authority files") from error
