"""The policy in force, at hand without asking the database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import msgspec

from feed import misfit
from server.accounts import policy as policies
from server.errors import RefusedError
from server.settings import Policy, is_source_url
from server.storage.database import Database


class InForce:
    """Calling it gives the Policy. One process changes it, so what is here is what holds."""

    def __init__(self, database: Database, policy: Policy) -> None:
        self._database = database
        self._policy = policy
        self._changing = asyncio.Lock()
        self._listeners: list[Callable[[], None]] = []

    @classmethod
    async def load(cls, database: Database) -> InForce:
        """What is stored. Raises StorageError: of a newer server."""
        return cls(database, await database.read(policies.load))

    def __call__(self) -> Policy:
        return self._policy

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever another policy is in force."""
        self._listeners.append(listener)

    async def change(self, given: Mapping[str, object], *, by: str, now: float) -> Policy:
        """Put some fields in force; the others stay.

        Raises RefusedError 400: an unknown field, or a value out of its range.
        """
        async with self._changing:  # each begins with what the one before left
            policy = checked(msgspec.to_builtins(self._policy) | dict(given))
            await self._database.write(
                lambda session: policies.store(session, policy, now=now, by=by)
            )
            self._policy = policy
        for listener in self._listeners:
            listener()
        return policy


def checked(fields: Mapping[str, object]) -> Policy:
    """The policy of these fields. Raises RefusedError 400."""
    try:
        policy = msgspec.convert(fields, Policy)
    except msgspec.ValidationError as error:
        sentence = misfit.explained(error, dict(fields), Policy)
        raise RefusedError(sentence, status=400, code="policy_invalid") from error
    if policy.source is not None and not is_source_url(policy.source):
        sentence = "source: expected http://, https:// or file:// and an address"
        raise RefusedError(sentence, status=400, code="policy_invalid")
    return policy
