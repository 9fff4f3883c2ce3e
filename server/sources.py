"""Where the mirror updates from, and the root that it trusts.

Both are named in the server's file, or given by an administrator; what the
file names can't be changed in another way.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

import structlog
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root

from feed import durable
from feed.source import public_url
from server.accounts import audit
from server.errors import RefusedError, conflict
from server.layout import Layout
from server.mirror.outcome import SourceSpec
from server.settings import Config
from server.storage.database import Database
from server.web.inforce import InForce
from server.web.models import SourceView

_log = structlog.get_logger()


class Sources:
    """See the module. clock gives Unix seconds."""

    def __init__(
        self,
        database: Database,
        config: Config,
        places: Layout,
        policy: InForce,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._config = config
        self._places = places
        self._policy = policy
        self._clock = clock

    def listed(self) -> tuple[SourceSpec, ...]:
        """In the order in which they are tried."""
        if self._config.sources:
            return tuple(
                SourceSpec(url=item.url, proxy=item.proxy, authority=item.authority)
                for item in self._config.sources
            )
        url = self._policy().source
        return (SourceSpec(url=url),) if url else ()

    def trust_root(self) -> bytes | None:
        """The root that was given; None if there is none that can be read."""
        named = self._config.trust_root
        path = Path(named) if named is not None else self._places.given_root
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.error("trust_root_unreadable", path=str(path), problem=error.strerror)
            return None

    async def view(self) -> SourceView:
        """Where it updates from, and the digest of the root it trusts."""
        urls = [item.url for item in self.listed()]
        root = self.trust_root()
        return SourceView(
            url=public_url(urls[0]) if urls else None,
            trust_root_sha256=hashlib.sha256(root).hexdigest() if root else None,
            from_file=bool(self._config.sources or self._config.trust_root),
        )

    async def change(self, *, url: str | None, trust_root: str | None, by: str) -> SourceView:
        """Change what isn't None.

        Raises RefusedError: 409 the server's file names it; 400 it can't be used.
        """
        if url is not None and self._config.sources:
            raise conflict("the sources are named in the server's file; change them there")
        root = self._root_of(trust_root) if trust_root is not None else None
        if url is not None:
            await self._policy.change({"source": url}, by=by, now=self._clock())
        if root is not None:
            await self._keep_root(root, by=by)
        return await self.view()

    def _root_of(self, text: str) -> bytes:
        """The bytes of a root that signs itself, as every root of a feed does."""
        if self._config.trust_root:
            raise conflict("the trust root is named in the server's file; change it there")
        data = text.encode()
        try:
            given = Metadata.from_bytes(data)
            if not isinstance(given.signed, Root):
                raise ValueError(f"it is of the type {given.signed.type}")
            given.signed.verify_delegate(Root.type, given.signed_bytes, given.signatures)
        except (RepositoryError, ValueError) as error:
            raise RefusedError(
                f"that is no root.json of a feed ({error})", status=400, code="root_unusable"
            ) from error
        return data

    async def _keep_root(self, data: bytes, *, by: str) -> None:
        """The audit knows of it before it counts."""
        now, detail = self._clock(), {"sha256": hashlib.sha256(data).hexdigest()}
        await self._database.write(
            lambda session: audit.note(
                session, who=by, action="trust_root_changed", detail=dict(detail), now=now
            )
        )
        await asyncio.to_thread(durable.replace, self._places.given_root, data, mode=0o644)
