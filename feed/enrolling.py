"""The client's half of an enrolment: first the pin, then the token, then the credential.

An agent enrols with its Security Server by it, and a server with the next one.
"""

from __future__ import annotations

import ssl
from typing import NamedTuple

from feed import pinning
from feed.errors import SecurityServerError
from feed.messages import ENROL_PATH, Enrolled, EnrolRequest
from feed.pinning import Aim
from feed.serverclient import ServerClient, fetch_authority

AGENT_ID_CHARS_MAX = 64


class Joined(NamedTuple):
    """Where, by whose authority (PEM; None: the system's), and what was given."""

    aim: Aim
    authority: str | None
    enrolled: Enrolled


def enrol(url: str, token: str, request: EnrolRequest) -> Joined:
    """Ask the server at `url` for a credential.

    Raises ValueError: the address or the token can't be used, for people.
    SecurityServerError: it refuses, or isn't the one that the token pins; then
    the token wasn't sent.
    """
    aim = pinning.aim(url, token)
    authority = _authority(aim)
    with ServerClient(aim.url, authority=authority) as client:
        given = client.ask(ENROL_PATH, request, Enrolled, bearer=token)
    is_usable = pinning.CREDENTIAL.fullmatch(given.credential) and given.agent_id
    if not is_usable or len(given.agent_id) > AGENT_ID_CHARS_MAX:
        raise SecurityServerError(
            f"{aim.url} gives a credential that can't be one", code="server_not_understood"
        )
    return Joined(aim, authority, given)


def _authority(aim: Aim) -> str | None:
    if aim.pin is None:
        return None
    text = fetch_authority(aim.url).strip()
    try:
        certificate = ssl.PEM_cert_to_DER_cert(text)
    except ValueError as error:
        raise SecurityServerError(
            f"{aim.url} shows no certificate of its authority", code="server_not_understood"
        ) from error
    if not pinning.is_pinned(certificate, aim.pin):
        raise SecurityServerError(
            f"the authority of {aim.url} isn't the one that the token names: either the token is "
            "another server's, or somebody answers in its place. The token wasn't sent",
            code="pin_mismatch",
        )
    return ssl.DER_cert_to_PEM_cert(certificate)  # exactly what was compared
