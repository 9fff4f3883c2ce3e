"""What is asked of the server with this machine's credential, and how that is renewed.

A new credential is on the disk before it is shown for the first time. Until the
server has taken it, the one before is kept and shown when the new one is refused.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
import structlog

from agent.fetcher import membership
from agent.fetcher.membership import Credential, Membership
from agent.layout import Layout
from feed import pinning
from feed.errors import SecurityServerError
from feed.messages import CREDENTIAL_PATH, NewCredential
from feed.serverclient import ServerClient

_log = structlog.get_logger()

T = TypeVar("T", bound=msgspec.Struct)


class Session:
    """One enrolment in use; one process at a time."""

    def __init__(self, places: Layout, member: Membership, client: ServerClient) -> None:
        self._places = places
        self._client = client
        self.enrolment = member.enrolment
        self._credential = member.credential

    @property
    def bearer(self) -> str:
        """What is shown next."""
        return self._credential.next or self._credential.current

    def ask(self, path: str, message: msgspec.Struct | None, reply: type[T]) -> T:
        """The server's answer.

        Raises SecurityServerError. OSError: there is an answer, but the disk refuses
        what follows from it.
        """
        shown = self._credential
        if shown.next is None:
            return self._client.ask(path, message, reply, bearer=shown.current)
        try:
            answer = self._client.ask(path, message, reply, bearer=shown.next)
        except SecurityServerError as error:
            if not error.is_refusal:
                raise
            answer = self._client.ask(path, message, reply, bearer=shown.current)
            _log.warning("new_credential_refused", server=self.enrolment.url, code=error.code)
            self._keep(shown.current)
        else:
            self._keep(shown.next)
        return answer

    def rotate(self) -> None:
        """Ask for a new credential and keep it, to be shown from now on.

        Raises SecurityServerError, OSError: the one before still holds.
        """
        given = self.ask(CREDENTIAL_PATH, None, NewCredential).credential
        if not pinning.CREDENTIAL.fullmatch(given):
            raise SecurityServerError(
                f"{self.enrolment.url} gives a credential that can't be one",
                code="server_not_understood",
            )
        self._store(msgspec.structs.replace(self._credential, next=given))
        _log.info("credential_rotated", server=self.enrolment.url)

    def _keep(self, current: str) -> None:
        self._store(msgspec.structs.replace(self._credential, current=current, next=None))

    def _store(self, credential: Credential) -> None:
        membership.store_credential(self._places, credential)
        self._credential = credential
