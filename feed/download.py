"""A signed target from the road to a file, however often the road breaks.

* What came so far is kept in the cache as `<digest>.part` and continued by
  Range, in this call or a later one.
* The digest runs along while bytes are written; nothing reaches the
  destination before it is the signed one, and never more than the signed
  length is written.
* A partial whose end result is off is thrown away. If some of it was from an
  earlier attempt, one more attempt starts from nothing.
* `<target>.zst`, when asked for, is unsigned: it is decoded in bounded memory
  within the signed length, and only what comes out is judged. Whatever is
  wrong with it, the plain target follows in the same call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from feed import durable
from feed.decompress import decode
from feed.errors import LimitError, RebuildError, TrustError
from feed.partial import Partial
from feed.room import full_disk_told
from feed.source import OversizeError, SourceError
from feed.transport import Transport

Progress = Callable[[int], None]

_DIGEST = re.compile(r"[0-9a-f]{64}")  # it names files in the cache


@dataclass(frozen=True)
class Signed:
    """What the vendor signed about a target: its path, bytes, and lowercase hex SHA-256."""

    path: str
    length: int
    digest: str


class Downloader:
    """Fetches targets of one source into files, through one cache folder.

    hash_prefixed is TUF's naming of targets in consistent snapshots, as our
    feeds have it. flush=False is for files that are read at once and never
    looked for after a power cut. One Downloader at a time may use a cache folder.
    """

    def __init__(
        self,
        transport: Transport,
        cache_dir: Path,
        targets_url: str,
        *,
        hash_prefixed: bool = True,
        flush: bool = True,
    ) -> None:
        self._transport = transport
        self._cache = cache_dir
        self._targets_url = f"{targets_url.rstrip('/')}/"
        self._hash_prefixed = hash_prefixed
        self._flush = flush

    def fetch(
        self,
        target_path: str,
        *,
        length: int,
        digest: str,
        destination: Path,
        compressed: bool = False,
        compressed_to: Path | None = None,
        bytes_max: int | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Put the verified target at `destination`; returns the bytes that travelled.

        length and digest (lowercase hex SHA-256) are the signed ones.
        compressed tries `<target>.zst` first; compressed_to keeps it where it
        served, as it came. bytes_max is what that and the
        plain target after it may take of the road, None: what they need.
        progress is told how many bytes of the file on the road are here, those
        of earlier calls included; it starts again when the road does.

        Raises TrustError: the source has other bytes than were signed.
        TransferError: the road; what came stays in the cache. RoomError.
        LimitError: the compressed form was no use, and the plain one is too much.
        """
        if not _DIGEST.fullmatch(digest):
            raise TrustError(f"target {target_path}: signed without a SHA-256 digest; not fetched")
        target = Signed(target_path, length, digest)
        told = progress or (lambda _bytes: None)
        began = self._transport.received_bytes
        self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with full_disk_told(f"target {target_path}"):
            destination.parent.mkdir(parents=True, exist_ok=True)
            if not (
                compressed
                and self._fetch_compressed(target, destination, compressed_to, told, bytes_max)
            ):
                self._check_left(target, bytes_max, self._transport.received_bytes - began)
                self._fetch_plain(target, destination, told)
        return self._transport.received_bytes - began

    def _check_left(self, target: Signed, bytes_max: int | None, gone: int) -> None:
        size = Partial(self._cache, target.digest, self._url(target)).size
        needed = gone + max(target.length - size, 0)
        if bytes_max is not None and needed > bytes_max:
            raise LimitError(
                f"target {target.path}: needs {needed:,} bytes, {bytes_max:,} may be fetched",
                needed=needed,
            )

    def sweep(self, keep: Collection[str]) -> list[Path]:
        """Delete cached partials of targets whose digests aren't in `keep`; returns them."""
        stale = [
            path
            for path in sorted(self._cache.glob("*.part*"))
            if path.name.partition(".")[0] not in keep
        ]
        for path in stale:
            path.unlink(missing_ok=True)
        return stale

    def _url(self, target: Signed) -> str:
        folder, slash, name = target.path.rpartition("/")
        prefix = f"{target.digest}." if self._hash_prefixed else ""
        return f"{self._targets_url}{folder}{slash}{prefix}{name}"

    def _fetch_plain(self, target: Signed, destination: Path, told: Progress) -> None:
        partial = Partial(self._cache, target.digest, self._url(target))
        if partial.size > target.length:
            partial.discard()
        was_resumed = partial.resumed
        try:
            self._complete(partial, target, told)
        except TrustError:
            if not was_resumed:
                raise
            # An old partial, perhaps another mirror's, may be what was wrong.
            self._complete(partial, target, told)
        partial.move_to(destination, flush=self._flush)

    def _complete(self, partial: Partial, target: Signed, told: Progress) -> None:
        self._transport.retry(
            lambda: self._continue(partial, target, told), progress=lambda: partial.size
        )
        if partial.digest != target.digest:
            found = partial.digest
            partial.discard()
            raise TrustError(
                f"target {target.path}: the source's bytes have SHA-256 {found}, "
                f"{target.digest} is signed; discarded"
            )

    def _continue(self, partial: Partial, target: Signed, told: Progress) -> None:
        """One attempt at the bytes that are missing."""
        if partial.size == target.length:
            return
        try:
            self._take(partial, self._url(target), limit=target.length, told=told, signed=target)
        except OversizeError as error:
            partial.discard()
            raise TrustError(
                f"target {target.path}: {error}; {target.length:,} bytes are signed, discarded"
            ) from error
        if partial.size < target.length:
            raise SourceError(
                f"target {target.path}: the answer ended at {partial.size:,} of "
                f"{target.length:,} bytes",
                temporary=True,
            )

    def _take(
        self, partial: Partial, url: str, *, limit: int, told: Progress, signed: Signed | None
    ) -> None:
        start = partial.size
        try:
            with self._transport.stream(
                url, limit=limit, start=start, if_range=partial.etag if start else None
            ) as incoming:
                if signed is not None and incoming.total not in (None, signed.length):
                    partial.discard()
                    raise TrustError(
                        f"target {signed.path}: the source has {incoming.total:,} bytes, "
                        f"{signed.length:,} are signed; discarded"
                    )
                for size in partial.take(incoming):
                    told(size)
        except SourceError as error:
            if error.status != 416 or not start:
                raise
            partial.discard()  # longer than the source's file: not its beginning
            self._take(partial, url, limit=limit, told=told, signed=signed)

    def _fetch_compressed(
        self,
        target: Signed,
        destination: Path,
        kept: Path | None,
        told: Progress,
        bytes_max: int | None,
    ) -> bool:
        """Try `<target>.zst`; False if the plain target has to be fetched."""
        url = f"{self._url(target)}.zst"
        partial = Partial(self._cache, f"{target.digest}.zst", url)
        if partial.etag is None:
            partial.discard()  # no way to know that a continuation would fit
        limit = compressed_limit(target.length)
        if bytes_max is not None:
            limit = min(limit, partial.size + max(bytes_max, 0))
        try:
            self._transport.retry(
                lambda: self._continue_compressed(partial, url, told, limit=limit),
                progress=lambda: partial.size,
            )
            self._decode(partial, target, destination)
        except (OversizeError, RebuildError):
            partial.discard()
            return False
        except SourceError as error:
            # Only an answer about this one file: a dead road, or one that asks
            # for a pause, is as dead for the plain target.
            if error.status is None or error.retry_after_s is not None:
                raise
            return False
        if kept is None or partial.size >= target.length:
            partial.discard()
        else:
            partial.move_to(kept, flush=self._flush)
        return True

    def _continue_compressed(
        self, partial: Partial, url: str, told: Progress, *, limit: int
    ) -> None:
        if not partial.is_complete:
            self._take(partial, url, limit=limit, told=told, signed=None)

    def _decode(self, partial: Partial, target: Signed, destination: Path) -> None:
        with (
            partial.path.open("rb") as packed,
            durable.replacing(destination, flush=self._flush) as out,
        ):
            found = decode(packed, out, limit=target.length)
            if found != target.digest:
                raise RebuildError(
                    f"target {target.path}: the compressed form decodes to SHA-256 {found}, "
                    f"{target.digest} is signed"
                )


def compressed_limit(length: int) -> int:
    """The most a useful `.zst` of `length` bytes can have: zstd's own worst case."""
    return length + (length >> 8) + 1024
