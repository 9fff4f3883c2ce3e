"""Where a sync goes to, and how it ended."""

from __future__ import annotations

import ssl

import msgspec

from feed.errors import FeedError, TransferError


class SourceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Where to mirror from; see server.settings.Source. authority is a PEM file."""

    url: str
    proxy: str | None = None
    authority: str | None = None


class Synced(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended. outcome is unchanged, switched or failed; code "" unless it failed.

    switched: another snapshot is served now. releases: {region: release} as
    served now.
    saved_bytes: what fulls would have cost that were rebuilt, less the
    increments for them. pruned_bytes were set free. damaged: files that were
    found not to be as signed, and replaced.
    """

    outcome: str
    source: str
    sentence: str
    code: str = ""
    switched: bool = False
    fetched_bytes: int = 0
    saved_bytes: int = 0
    pruned_bytes: int = 0
    releases: dict[str, str] = {}
    damaged: tuple[str, ...] = ()
    retry_after_s: float | None = None


class WaitingError(FeedError):
    """The source lacks increments that agents need; tried again, and not for ever."""

    code = "increments_lacking"


class StoppedError(FeedError):
    """The server ends in the middle of a sync or scrub."""

    code = "stopped"


def authority(path: str | None) -> ssl.SSLContext | None:
    """What verifies the source: its own authority, None for the system's."""
    if path is None:
        return None
    try:
        return ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        raise TransferError(
            f"{path}: not a certificate authority's PEM file ({error.strerror or error})"
        ) from error
