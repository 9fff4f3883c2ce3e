"""python-tuf's Updater, with our storage, our transport and our clock.

python-tuf decides what is trusted; nothing here weakens or repeats that.
What is replaced are private methods of 7.0, for reasons that stand beside
each; tests/unit/test_trust_attacks.py fails if a later release moves them.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from feed import durable
from feed.errors import TrustError
from feed.source import Fetched, Source, SourceError

METADATA_BYTES_MAX = 5_000_000


class TransportFetcher(FetcherInterface):
    """Lets python-tuf fetch over our transport; its errors pass as they are."""

    def __init__(self, transport: Source) -> None:
        self._transport = transport

    def get(self, url: str, limit: int) -> Fetched:
        """The whole answer for `url`."""
        return self._transport.fetch(url, limit=limit)

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Metadata, never more than `max_length`."""
        return self.get(url, max_length).body

    def _fetch(self, url: str) -> Iterator[bytes]:
        # Not a generator: what one raises would come after fetch() has returned.
        return iter((self.download_bytes(url, METADATA_BYTES_MAX),))


class StoredUpdater(Updater):
    """One refresh, then any number of lookups.

    offline trusts the stored root, timestamp and snapshot as final, and
    fetches only what a lookup finds missing. handed is an answer for
    timestamp.json that was read already. `role` is the role last worked on,
    `data` its bytes, for whoever explains a refusal.
    """

    def __init__(
        self,
        metadata_dir: Path,
        metadata_url: str,
        trusted_root: bytes,
        transport: Source,
        *,
        now: datetime.datetime,
        config: UpdaterConfig | None = None,
        offline: bool = False,
        handed: Fetched | None = None,
    ) -> None:
        self.role = Root.type
        self.data = trusted_root
        self.timestamp_answer: Fetched | None = handed
        self._folder = metadata_dir
        self._offline = offline
        self._handed = handed
        self._source = TransportFetcher(transport)
        self._is_ready = False
        super().__init__(
            str(metadata_dir),
            metadata_url,
            fetcher=self._source,
            config=config,
            bootstrap=trusted_root,
        )
        self._is_ready = True
        self._trusted_set.reference_time = now

    @property
    def root(self) -> Root:
        """The trusted root."""
        return self._trusted_set.root

    def expiries(self) -> dict[str, datetime.datetime]:
        """When each top-level role that is loaded expires."""
        roles = (Root.type, Timestamp.type, Snapshot.type, Targets.type)
        return {
            role: self._trusted_set[role].expires for role in roles if role in self._trusted_set
        }

    def delegated(self, *, roles_max: int) -> Iterator[tuple[str, Targets]]:
        """Every targets role that delegations lead to, verified, `targets` itself first.

        Raises TrustError: more than roles_max. RepositoryError, SourceError.
        """
        waiting, visited = [(Targets.type, Root.type)], set[str]()
        while waiting:
            role, parent = waiting.pop()
            if role in visited:
                continue
            visited.add(role)
            if len(visited) > roles_max:
                raise TrustError(f"the feed has more than {roles_max:,} roles; nothing was taken")
            found = self._load_targets(role, parent)
            yield role, found
            waiting += [(child, role) for child in reversed(_children(found, roles_max))]

    def exportable(self) -> Iterator[tuple[str, bytes]]:
        """The verified metadata, as (name a repository serves it by, bytes)."""
        for version in range(1, self.root.version + 1):
            with contextlib.suppress(FileNotFoundError):
                file = self._folder / "root_history" / f"{version}.root.json"
                yield f"{version}.root.json", file.read_bytes()
        yield "timestamp.json", self._load_local_metadata(Timestamp.type)
        names = [Snapshot.type, *(n.removesuffix(".json") for n in self._trusted_set.snapshot.meta)]
        for role in names:
            if role in self._trusted_set:
                version = self._trusted_set[role].version
                yield self._served_name(role, version), self._load_local_metadata(role)

    def _served_name(self, role: str, version: int) -> str:
        quoted = self._quoted(role)
        return f"{version}.{quoted}" if self.root.consistent_snapshot else quoted

    @staticmethod
    def _quoted(role: str) -> str:
        return f"{urllib.parse.quote(role, '')}.json"

    def _persist_file(self, filename: str, data: bytes) -> None:
        # python-tuf renames without fsync. After a power cut the timestamp
        # could be empty, and with it the record of versions seen: an old
        # repository would then pass for a new one.
        path = Path(filename)
        with contextlib.suppress(OSError):
            if path.read_bytes() == data:
                return
        durable.replace(path, data)

    def _update_root_symlink(self) -> None:
        # A file instead of a link: python-tuf removes the link first, and a
        # power cut between the two would leave no root at all.
        path = self._folder / "root.json"
        if not self._is_ready and path.exists() and not path.is_symlink():
            return  # the constructor's root may be older than the stored one
        if self._is_ready:
            self._forget_after_rotation(path)
        version = self.root.version
        data = (self._folder / "root_history" / f"{version}.root.json").read_bytes()
        if path.is_symlink():
            path.unlink()
        self._persist_file(str(path), data)

    def _forget_after_rotation(self, path: Path) -> None:
        # TUF specification 5.3.11: a rotated timestamp or snapshot key ends
        # what the old one said, or a version number run up by a thief would
        # be held against the rightful owner for ever. Before root.json is
        # replaced, so that a power cut repeats it.
        try:
            previous = Metadata[Root].from_bytes(path.read_bytes()).signed
        except (OSError, exceptions.RepositoryError):
            return
        for role in (Timestamp.type, Snapshot.type):
            if set(previous.roles[role].keyids) - set(self.root.roles[role].keyids):
                durable.remove(self._folder / "timestamp.json")
                durable.remove(self._folder / "snapshot.json")

    def _download_metadata(self, rolename: str, length: int, version: int | None = None) -> bytes:
        self.role = rolename
        if self._offline and rolename == Root.type:
            raise exceptions.DownloadHTTPError("the stored root is taken as the newest", 404)
        if self._offline and rolename == Timestamp.type:
            return self._load_local_metadata(rolename)
        if rolename == Timestamp.type:
            self.data = self._timestamp(length)
            return self.data
        try:
            self.data = super()._download_metadata(rolename, length, version)
        except SourceError as error:
            if rolename == Root.type and error.is_absent:
                raise exceptions.DownloadHTTPError(str(error), 404) from error
            raise
        return self.data

    def _timestamp(self, length: int) -> bytes:
        url = f"{self._metadata_base_url}timestamp.json"
        answer = self._handed or self._source.get(url, length)
        self.timestamp_answer = answer
        return answer.body

    def _load_snapshot(self) -> None:
        self.role = Snapshot.type
        super()._load_snapshot()

    def _load_targets(self, role: str, parent_role: str) -> Targets:
        self.role = role
        return super()._load_targets(role, parent_role)


def _children(targets: Targets, most: int) -> list[str]:
    """The roles that `targets` delegates to; of very many, enough to be refused."""
    delegations = targets.delegations
    if delegations is None:
        return []
    if delegations.succinct_roles is not None:
        return list(itertools.islice(delegations.succinct_roles.get_roles(), most + 1))
    return list(delegations.roles or ())
