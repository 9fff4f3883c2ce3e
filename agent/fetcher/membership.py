"""What this machine keeps of its Security Server: two files that only the fetcher's user reads.

`enrolment.json` says which server and by whose authority, `credential` what to
show it. Each is replaced in one step. The credential names the enrolment that
it belongs to, so a power cut between the two never shows a server another
one's credential.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TypeVar

import msgspec

from agent.config import Source
from agent.errors import EnrolmentError
from agent.layout import Layout
from feed import durable
from feed.messages import FEED_PATH

FILE_BYTES_MAX = 1 << 20

T = TypeVar("T", bound=msgspec.Struct)


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """Which server. authority: the PEM certificate that alone signs for it; None: the system's."""

    url: str
    agent_id: str
    enrolled_at: float  # Unix seconds
    authority: str | None = None

    @property
    def source(self) -> Source:
        """The server's feed."""
        return Source(url=f"{self.url}{FEED_PATH}")


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown to the server. next: handed out, and not yet seen to be taken."""

    agent_id: str
    current: str
    next: str | None = None

    def __repr__(self) -> str:
        return f"Credential(agent_id={self.agent_id!r})"  # the rest isn't for logs


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """Both."""

    enrolment: Enrolment
    credential: Credential


def is_enrolled(places: Layout) -> bool:
    """Whether there is a server at all. Raises OSError: that can't be told."""
    return places.enrolment.exists()


def enrolment(places: Layout) -> Enrolment | None:
    """Which server, None without one.

    Raises EnrolmentError: the file can't be used.
    """
    return _read(places.enrolment, Enrolment)


def load(places: Layout) -> Membership | None:
    """None: there is no server.

    Raises EnrolmentError: a file can't be used, or they don't belong together.
    """
    found, shown = enrolment(places), _read(places.credential, Credential)
    if found is None:
        return None
    if shown is None or shown.agent_id != found.agent_id:
        raise EnrolmentError(
            f"{places.credential} isn't the credential for {found.url}; "
            "enrol again: agentctl enroll URL TOKEN"
        )
    return Membership(enrolment=found, credential=shown)


def store(places: Layout, membership: Membership) -> None:
    """Durably, in place of any other. Raises OSError."""
    store_credential(places, membership.credential)
    durable.replace(places.enrolment, msgspec.json.encode(membership.enrolment))


def store_credential(places: Layout, credential: Credential) -> None:
    """Durably. Raises OSError: the one before still holds."""
    durable.replace(places.credential, msgspec.json.encode(credential))


def forget(places: Layout) -> None:
    """Durably leave the server. Raises OSError."""
    durable.remove(places.enrolment)
    durable.remove(places.credential)


def _read(path: Path, form: type[T]) -> T | None:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(FILE_BYTES_MAX), type=form)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # Not the decoder's own words: they could repeat what is in the file.
        why = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise EnrolmentError(f"{path}: {why}; enrol again: agentctl enroll URL TOKEN") from error


def sweep(places: Layout) -> None:
    """Delete what an interrupted write left. Nobody else may be writing."""
    with contextlib.suppress(OSError):
        for folder in (places.server, places.spool):
            durable.sweep_temporaries(folder)
