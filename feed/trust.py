"""What the vendor signed, and nothing else: TUF metadata over our transport.

python-tuf's client decides what is trusted (theupdateframework.github.io,
specification 1.0, section 5). TrustedFeed serves any TUF repository, ours or
a stranger's. In its metadata folder it keeps what it verified under
unversioned names: root.json, timestamp.json, snapshot.json, targets.json,
<role>.json, and the chain of roots in root_history/.

 * A refusal is a TrustError and changes nothing that was trusted before.
 * A check that finds nothing new costs one conditional request. It shortens
   the workflow only while the stored metadata is unexpired, and at least once
   a day the whole workflow runs, so a new root is never missed for longer.
 * Expiry is judged by this machine's clock, replay by the versions seen: a
   clock set back can make expired metadata pass, never older metadata.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, TargetFile
from tuf.api.serialization import DeserializationError
from tuf.ngclient import UpdaterConfig

from feed import durable
from feed.errors import ExpiredError, TrustError
from feed.room import full_disk_told
from feed.source import Fetched, OversizeError, Source
from feed.target import TargetCheck, is_verified, safe_path
from feed.updater import StoredUpdater

FULL_REFRESH_S = 86400.0
ROLES_MAX = 1024  # a release has at most 256 components, each with a role
TARGETS_MAX = 100_000
_STAYS = "nothing was taken from it, what is installed stays"


class _LastRefresh(msgspec.Struct, frozen=True):
    """What an idle check relies on; `digest` ties it to the stored timestamp.

    source is the SHA-256 of the metadata URL, whose ETag it is. Times are
    seconds since the epoch, by this machine's clock.
    """

    source: str
    digest: str
    completed_at_s: float
    valid_until_s: float
    etag: str | None
    last_modified: str | None


class TrustedFeed:
    """A TUF repository, as far as `trusted_root` vouches for it.

    metadata_dir is made if missing and belongs to one TrustedFeed at a time.
    idle_check False runs the whole workflow at each refresh. config carries
    python-tuf's limits and naming of targets. now is the wall clock, in UTC.

    Every method raises TrustError (never worth a retry), TransferError (the
    road), RoomError (the disk is full) and OSError (the folder can't be used).
    """

    def __init__(
        self,
        metadata_dir: Path,
        metadata_url: str,
        targets_url: str,
        trusted_root: bytes,
        transport: Source,
        *,
        idle_check: bool = True,
        full_refresh_s: float = FULL_REFRESH_S,
        config: UpdaterConfig | None = None,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._dir = metadata_dir
        self._metadata_url = f"{metadata_url.rstrip('/')}/"
        self._targets_url = f"{targets_url.rstrip('/')}/"
        self._trusted_root = trusted_root
        self._transport = transport
        self._idle_check = idle_check
        self._full_refresh_s = full_refresh_s
        self._config = config or UpdaterConfig()
        self._now = now
        self._updater: StoredUpdater | None = None
        self._is_fresh = False  # refreshed in this process: lookups may load from disk

    def refresh(self) -> bool:
        """Bring the metadata up to date; True if the feed says something new.

        New is another root or snapshot than the one stored before; a
        timestamp signed again isn't.
        """
        self._updater = None
        self._is_fresh = False
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self._dir, self._dir / "root_history"):
            durable.sweep_temporaries(folder)  # of a process that was killed
        before = self._fingerprint()
        answer = self._ask_for_news()
        if answer is None or self._is_news(answer):
            self._refresh_completely(answer)
        self._is_fresh = True
        return self._fingerprint() != before

    def find(self, path: str) -> TargetFile | None:
        """What the vendor signed about the target `path`; None if no role lists it.

        Delegations are followed in their order; a terminating one ends the
        search. Refreshes first if this object hasn't yet.
        """
        if not self._is_fresh:
            self.refresh()
        updater = self._loaded()
        with self._translated(updater):
            return updater.get_targetinfo(path)

    def download(self, target: str | TargetFile, folder: Path) -> Path:
        """The target as a verified file at `folder`/<target path>.

        A file that is there already and verifies is left alone. For payloads
        with progress and resume see feed.download.
        """
        if isinstance(target, str):
            found = self.find(target)
            if found is None:
                raise TrustError(f"target {target}: no role of the feed signs it")
            target = found
        path = folder / safe_path(target.path)
        if not is_verified(path, target):
            self._download_to(path, target)
        return path

    def everything(self) -> tuple[TargetFile, ...]:
        """Every target that somebody signs who may: what `find` finds, by its path.

        Visits all delegated roles, so that `metadata` holds them too. Refreshes
        first if this object hasn't yet.
        """
        if not self._is_fresh:
            self.refresh()
        updater = self._loaded()
        with self._translated(updater):
            paths: dict[str, None] = {}
            for _, role in updater.delegated(roles_max=ROLES_MAX):
                paths |= dict.fromkeys(role.targets)
                if len(paths) > TARGETS_MAX:
                    raise TrustError(f"the feed has more than {TARGETS_MAX:,} targets; {_STAYS}")
            return tuple(found for path in paths if (found := updater.get_targetinfo(path)))

    def metadata(self) -> dict[str, bytes]:
        """The verified metadata as `export` writes it, {name: bytes}."""
        updater = self._loaded()
        with self._translated(updater):
            return dict(updater.exportable())

    @property
    def root(self) -> Root:
        """The trusted root, as of the last refresh."""
        return self._loaded().root

    def export(self, folder: Path) -> None:
        """Write the verified metadata into `folder`, named as a repository serves it.

        The roots, timestamp, snapshot, targets, and the delegated roles that
        `find` has visited since the last refresh: another process verifies
        them again with a TrustedFeed on file URLs. Nothing is flushed to the disk.
        """
        updater = self._loaded()
        folder.mkdir(parents=True, exist_ok=True)
        with full_disk_told("the feed's metadata"):
            for name, data in updater.exportable():
                durable.replace(folder / name, data, mode=0o644, flush=False)

    def _loaded(self) -> StoredUpdater:
        if self._updater is None:
            updater = self._new_updater(offline=True)
            with self._translated(updater):
                updater.refresh()
            self._updater = updater
        return self._updater

    def _ask_for_news(self) -> Fetched | None:
        """The source's timestamp.json, asked for on condition; None if that isn't enough."""
        last = self._last_refresh() if self._idle_check else None
        if last is None:
            return None
        url = f"{self._metadata_url}timestamp.json"
        limit = self._config.timestamp_max_length
        try:
            return self._transport.fetch(
                url, limit=limit, etag=last.etag, last_modified=last.last_modified
            )
        except OversizeError as error:
            raise TrustError(f"the feed's timestamp metadata: {error}; {_STAYS}") from error

    def _last_refresh(self) -> _LastRefresh | None:
        """The last complete refresh, if it still stands: this source, this file, in time."""
        try:
            last = msgspec.json.decode(self._note.read_bytes(), type=_LastRefresh)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None
        now_s = self._now().timestamp()
        # A clock set back makes the age negative: nothing can be said then.
        is_recent = 0 <= now_s - last.completed_at_s < self._full_refresh_s
        is_ours = last.source == _digest(self._metadata_url.encode())
        is_stored = last.digest == self._stored_digest("timestamp.json")
        return last if is_recent and is_ours and is_stored and now_s < last.valid_until_s else None

    def _is_news(self, answer: Fetched) -> bool:
        if answer.not_modified:
            return False
        return _digest(answer.body) != self._stored_digest("timestamp.json")

    def _refresh_completely(self, handed: Fetched | None) -> None:
        with full_disk_told("the feed's metadata"):
            durable.remove(self._note)  # until all of it has been verified
        updater = self._new_updater(handed=handed)
        with self._translated(updater):
            updater.refresh()
        self._updater = updater
        if self._idle_check:
            self._remember(updater)

    def _remember(self, updater: StoredUpdater) -> None:
        answer = updater.timestamp_answer
        digest = self._stored_digest("timestamp.json")
        if answer is None or digest is None or _digest(answer.body) != digest:
            return
        last = _LastRefresh(
            source=_digest(self._metadata_url.encode()),
            digest=digest,
            completed_at_s=self._now().timestamp(),
            valid_until_s=min(updater.expiries().values()).timestamp(),
            etag=answer.etag,
            last_modified=answer.last_modified,
        )
        with full_disk_told("the feed's metadata"):
            durable.replace(self._note, msgspec.json.encode(last))

    @property
    def _note(self) -> Path:
        # Not *.json: every such file in the folder is signed metadata.
        return self._dir / "last-refresh"

    def _stored_digest(self, name: str) -> str | None:
        try:
            return _digest((self._dir / name).read_bytes())
        except OSError:
            return None

    def _fingerprint(self) -> tuple[str | None, str | None]:
        return self._stored_digest("root.json"), self._stored_digest("snapshot.json")

    def _new_updater(
        self, *, offline: bool = False, handed: Fetched | None = None
    ) -> StoredUpdater:
        try:
            with full_disk_told("the feed's metadata"):
                return StoredUpdater(
                    self._dir,
                    self._metadata_url,
                    self._trusted_root,
                    self._transport,
                    now=self._now(),
                    config=self._config,
                    offline=offline,
                    handed=handed,
                )
        except exceptions.RepositoryError as error:
            raise TrustError(
                f"the trusted root this machine was given can't be used: {error}; "
                "no update is taken until it is replaced by the vendor's"
            ) from error

    @contextlib.contextmanager
    def _translated(self, updater: StoredUpdater) -> Iterator[None]:
        try:
            with full_disk_told("the feed's metadata"):
                yield
        except exceptions.ExpiredMetadataError as error:
            raise ExpiredError(self._expired(updater, str(error))) from error
        except exceptions.RepositoryError as error:
            raise TrustError(
                f"the feed's {updater.role} metadata {_why(error)}; {_STAYS}"
            ) from error
        except OversizeError as error:
            raise TrustError(f"the feed's {updater.role} metadata: {error}; {_STAYS}") from error

    def _expired(self, updater: StoredUpdater, text: str) -> str:
        role = _EXPIRED_ROLE.sub(r"\1", text)
        expires = updater.expiries().get(role) or _expiry_in(updater.data)
        when = f" on {expires:%Y-%m-%d %H:%M} UTC" if expires else ""
        return (
            f"the feed's {role} metadata expired{when}, this machine's clock says "
            f"{self._now():%Y-%m-%d %H:%M} UTC; updates stop until the vendor signs it anew "
            "or the clock is right, protection goes on with what is installed"
        )

    def _download_to(self, path: Path, target: TargetFile) -> None:
        url = self._targets_url + self._served_path(target)
        with full_disk_told(f"target {target.path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._transport.retry(lambda: self._download_once(url, path, target))

    def _download_once(self, url: str, path: Path, target: TargetFile) -> None:
        check = TargetCheck(target)
        try:
            with (
                self._transport.stream(url, limit=target.length) as incoming,
                durable.replacing(path, mode=0o644) as out,
            ):
                for chunk in incoming.chunks:
                    check.add(chunk)
                    out.write(chunk)
                check.finish()
        except OversizeError as error:
            raise TrustError(f"target {target.path}: {error}; discarded") from error

    def _served_path(self, target: TargetFile) -> str:
        is_prefixed = self._loaded().root.consistent_snapshot
        if not (is_prefixed and self._config.prefix_targets_with_hash):
            return target.path
        folder, slash, name = target.path.rpartition("/")
        return f"{folder}{slash}{next(iter(target.hashes.values()))}.{name}"


_EXPIRED_ROLE = re.compile(r"(?:Final |New )?(.+?)(?:\.json)? is expired")


def _why(error: exceptions.RepositoryError) -> str:
    """What is wrong, from the kind of refusal; python-tuf's own words hold the numbers."""
    match error:
        case exceptions.UnsignedMetadataError():
            kind = "isn't signed by enough of the keys trusted for it"
        case exceptions.BadVersionNumberError():
            kind = "has another version than the one due, or one older than seen before"
        case exceptions.LengthOrHashMismatchError():
            kind = "isn't the file that the metadata above it lists"
        case DeserializationError():
            kind = "doesn't parse"
        case _:
            kind = "is refused"
    return f"{kind} ({error})"


def _expiry_in(data: bytes) -> datetime.datetime | None:
    with contextlib.suppress(exceptions.RepositoryError):
        expires: datetime.datetime = Metadata.from_bytes(data).signed.expires
        return expires
    return None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
