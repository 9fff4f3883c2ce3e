"""What this server tells the next one: counts, and no machine's name.

Enrolled like an agent, with the role of a server (`serverctl upstream enrol`);
the credential is in a file of the server's user. Counts are sent at the start
and each hour; each replaces the one before, so nothing is queued while the
next server is away.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog
from sqlalchemy.orm import Session

from feed import durable, enrolling
from feed.errors import SecurityServerError
from feed.messages import COUNTS_PATH, Counts, CountsTaken, EnrolRequest, Facts
from feed.serverclient import ServerClient
from server import __version__
from server.errors import ConfigError, RefusedError, ServerError, conflict
from server.fleet import counts
from server.storage.database import Database
from server.storage.tables import Setting
from server.web.inforce import InForce
from server.web.models import UpstreamView

EVERY_S = 3600.0
AGAIN_S = 300.0
OWN_ID = "server_id"

_log = structlog.get_logger()


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """Which server is the next one. authority is PEM, None for what this machine trusts."""

    url: str
    agent_id: str
    credential: str
    authority: str | None = None

    def __repr__(self) -> str:
        return f"Membership(url={self.url!r}, agent_id={self.agent_id!r})"


def load(path: Path) -> Membership | None:
    """None: there is no next server. Raises ConfigError: the file can't be used."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Membership)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise ConfigError(f"{path}: {why}; serverctl upstream enrol makes it anew") from error


class Upstream:
    """Sends counts from time to time."""

    def __init__(
        self, path: Path, database: Database, policy: InForce, *, clock: Callable[[], float]
    ) -> None:
        self._path = path
        self._database = database
        self._policy = policy
        self._clock = clock
        self._enrolled = asyncio.Event()

    async def view(self) -> UpstreamView:
        """Which server is the next one. Raises ConfigError: the file can't be used."""
        member = await asyncio.to_thread(load, self._path)
        return UpstreamView(
            url=member.url if member else None, agent_id=member.agent_id if member else None
        )

    async def enrol(self, *, url: str, token: str) -> UpstreamView:
        """Enrol with the server at `url`; counts are sent at once.

        Raises RefusedError: 400 the address or the token can't be used; 409 it refuses.
        """
        host_id = await self._database.write(_own_id)
        try:
            await asyncio.to_thread(_enrol, self._path, url=url, token=token, host_id=host_id)
        except ValueError as error:
            raise RefusedError(str(error), status=400, code="enrolment_malformed") from error
        except SecurityServerError as error:
            raise conflict(str(error), code=error.code) from error
        self._enrolled.set()
        return await self.view()

    async def forget(self) -> None:
        """Send nothing more."""
        await asyncio.to_thread(durable.remove, self._path)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._enrolled.clear()
            delay = await self._send()
            try:
                async with asyncio.timeout(delay * random.uniform(0.9, 1.1)):  # noqa: S311 - a spread
                    await self._enrolled.wait()
            except TimeoutError:
                continue

    async def _send(self) -> float:
        """Seconds until the next time."""
        try:
            member = load(self._path)
        except ConfigError as error:
            _log.error("upstream_unusable", problem=str(error))
            return EVERY_S
        if member is None:
            return EVERY_S
        now, silent_after_s = self._clock(), self._policy().silent_after_s
        try:
            told = await self._database.write(
                lambda session: counts.build(session, now=now, silent_after_s=silent_after_s)
            )
            await asyncio.to_thread(_post, member, told)
        except SecurityServerError as error:
            _log.warning("counts_not_sent", upstream=member.url, problem=str(error))
            return min(error.retry_after_s or AGAIN_S, EVERY_S)
        except (ServerError, OSError) as error:
            _log.error("counts_not_sent", upstream=member.url, problem=str(error))
            return AGAIN_S
        _log.info("counts_sent", upstream=member.url, agents=told.agents)
        return EVERY_S


def _enrol(path: Path, *, url: str, token: str, host_id: str) -> None:
    facts = Facts(
        host_id=host_id,
        name=f"server-{host_id[:8]}",
        platform="server",
        agent_version=__version__,
    )
    joined = enrolling.enrol(url, token, EnrolRequest(facts=facts, role="server"))
    made = Membership(
        url=joined.aim.url,
        agent_id=joined.enrolled.agent_id,
        credential=joined.enrolled.credential,
        authority=joined.authority,
    )
    durable.replace(path, msgspec.json.encode(made))


def _own_id(session: Session) -> str:
    """What the next server knows this one by, however often it enrols."""
    row = session.get(Setting, OWN_ID)
    if row is None:
        row = Setting(key=OWN_ID, value={"id": secrets.token_hex(8)}, changed_at=0.0)
        session.add(row)
    return str(row.value["id"])


def _post(member: Membership, told: Counts) -> None:
    with ServerClient(member.url, authority=member.authority) as client:
        client.ask(COUNTS_PATH, told, CountsTaken, bearer=member.credential)
