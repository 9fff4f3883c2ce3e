"""Who may come in: every token of every request is looked at here, and nowhere else.

* A credential is known by its digest (server.accounts); nobody speaks for
  another, because who speaks is read from the credential alone.
* Refused tokens are counted by address. Past the limit the address is told to
  wait before any token of it is looked up, except those that were good before,
  so a guesser doesn't lock out his neighbours.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeVar

from server.accounts import access, tokens
from server.accounts.credentials import AgentIdentity, Credentials
from server.errors import RefusedError
from server.settings import Limits
from server.storage.database import Database
from server.web.asgi import Scope, address, bearer, state
from server.web.limits import Rates, too_many

GOOD_MAX = 50_000  # tokens that are remembered as good before, 16 bytes each
REFUSED_BURST = 20.0
KINDS = {
    "admin": "an administrator's token",
    "enrol": "an enrolment token",
    "agent": "a credential",
}

T = TypeVar("T")


class Door:
    """Authenticates, and holds everybody to his rate. clock is monotonic, wall Unix time."""

    def __init__(
        self,
        database: Database,
        credentials: Credentials,
        limits: Limits,
        *,
        monotonic: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._credentials = credentials
        self._clock = clock
        self._good: OrderedDict[bytes, None] = OrderedDict()
        self._agents = Rates(
            per_s=limits.agent_requests_per_s,
            burst=limits.agent_requests_burst,
            clock=monotonic,
        )
        burst = max(REFUSED_BURST, limits.enrolments_per_s)
        self._refused = Rates(per_s=limits.enrolments_per_s, burst=burst, clock=monotonic)
        self._enrolments = Rates(per_s=limits.enrolments_per_s, burst=burst, clock=monotonic)
        self.refused_total = 0

    async def agent(self, scope: Scope) -> AgentIdentity:
        """The agent whose credential the request carries.

        Raises RefusedError: 401, 403 another kind of token, 429.
        """
        text = self._token(scope, "agent")
        found = await self._vouched(scope, text, lambda: self._credentials.agent(text))
        state(scope)["who"] = found.id
        self._agents.check(found.id, what="requests of this agent")
        return found

    async def server(self, scope: Scope) -> AgentIdentity:
        """As `agent`, of another server. Raises RefusedError 403 for an agent."""
        found = await self.agent(scope)
        if found.role != "server":
            raise RefusedError("only servers send counts", status=403, code="not_a_server")
        return found

    async def administrator(self, scope: Scope) -> str:
        """The name of the administrator whose token the request carries."""
        text, now = self._token(scope, "admin"), self._clock()

        async def ask() -> str:
            return await self._database.read(
                lambda session: access.administrator(session, text, now=now)
            )

        name = await self._vouched(scope, text, ask)
        state(scope)["who"] = name
        return name

    async def enrolling(self, scope: Scope, enrol: Callable[[str], Awaitable[T]]) -> T:
        """What `enrol` makes of the request's enrolment token; so many for each address."""
        text = self._token(scope, "enrol")
        self._enrolments.check(address(scope), what="enrolments from this address")
        return await self._vouched(scope, text, lambda: enrol(text))

    async def once(self, scope: Scope, use: Callable[[], Awaitable[T]]) -> T:
        """What `use` makes of a token in the request's body."""
        return await self._vouched(scope, "", use)

    def _token(self, scope: Scope, kind: str) -> str:
        text = bearer(scope)
        if text is None:
            sentence = f"this needs {KINDS[kind]} (Authorization: Bearer …)"
            raise RefusedError(sentence, status=401, code="token_missing")
        given = tokens.parse(text)
        if given is not None and given.kind != kind:
            sentence = f"this needs {KINDS[kind]}, not another kind of token"
            raise RefusedError(sentence, status=403, code="token_of_another_kind")
        return text

    async def _vouched(self, scope: Scope, text: str, ask: Callable[[], Awaitable[T]]) -> T:
        source = address(scope)
        mark = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if mark not in self._good and (wait_s := self._refused.is_spent(source)):
            raise too_many("refused tokens from this address", wait_s)
        try:
            found = await ask()
        except RefusedError as error:
            if error.status == 401:
                self.refused_total += 1
                self._good.pop(mark, None)
                self._refused.take(source)
            raise
        if text:
            self._remember(mark)
        return found

    def _remember(self, mark: bytes) -> None:
        self._good[mark] = None
        if len(self._good) > GOOD_MAX:
            self._good.popitem(last=False)
