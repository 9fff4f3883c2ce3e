"""What came so far of a file on the road, kept for the next attempt.

Two files in the cache: `<name>.part` holds the bytes, `<name>.part.from` says
whose they are. Neither is trusted: the digest of the whole judges. Neither is
fsynced either; a power cut costs at most the bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from feed import durable
from feed.errors import TrustError
from feed.source import Incoming

_READ_BYTES = 1 << 20


class _Origin(msgspec.Struct, frozen=True):
    """The answer the bytes are from; url is its SHA-256, since URLs hold credentials."""

    url: str
    etag: str | None
    total: int | None


class Partial:
    """A growing file and the SHA-256 of it; one object at a time per name."""

    def __init__(self, cache: Path, name: str, url: str) -> None:
        self.path = cache / f"{name}.part"
        self._note = cache / f"{name}.part.from"
        self._url = hashlib.sha256(url.encode()).hexdigest()
        self._hash = hashlib.sha256()
        self.size = 0
        self._absorb()
        self.resumed = self.size > 0  # some of it is from before this object

    def _absorb(self) -> None:
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            while chunk := file.read(_READ_BYTES):
                self._hash.update(chunk)
                self.size += len(chunk)

    @property
    def digest(self) -> str:
        """Lowercase hex SHA-256 of the bytes so far."""
        return self._hash.hexdigest()

    @property
    def etag(self) -> str | None:
        """The strong ETag of the same source's file these bytes are from, if known."""
        origin = self._origin()
        etag = origin.etag if origin else None
        return None if etag is None or etag.startswith("W/") else etag

    @property
    def is_complete(self) -> bool:
        """Whether the source said the file is exactly this long."""
        origin = self._origin()
        return origin is not None and self.size > 0 and origin.total == self.size

    def _origin(self) -> _Origin | None:
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
            origin = msgspec.json.decode(self._note.read_bytes(), type=_Origin)
            return origin if origin.url == self._url else None
        return None

    def take(self, incoming: Incoming) -> Iterator[int]:
        """Write an answer's chunks; yields the size after each.

        The answer begins where this partial ends, or at 0: then it starts anew.
        """
        if incoming.start != self.size:
            self.discard()
        origin = _Origin(self._url, incoming.etag, incoming.total)
        self._note.write_bytes(msgspec.json.encode(origin))
        with self._appending() as file:
            for chunk in incoming.chunks:
                file.write(chunk)
                self._hash.update(chunk)
                self.size += len(chunk)
                yield self.size

    def _appending(self) -> BinaryIO:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        return os.fdopen(os.open(self.path, flags | getattr(os, "O_BINARY", 0), 0o600), "ab")

    def discard(self) -> None:
        """Forget the bytes, and start from nothing."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)
        self._hash = hashlib.sha256()
        self.size = 0
        self.resumed = False

    def move_to(self, destination: Path, *, flush: bool = True) -> None:
        """Become `destination`; across file systems by a verified copy. flush: durably."""
        self._appending().close()  # a target of no bytes has brought no file yet
        if flush:
            durable.sync_file(self.path)
        try:
            durable.rename(self.path, destination, flush=flush)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._copy_to(destination, flush=flush)
        self.discard()

    def _copy_to(self, destination: Path, *, flush: bool) -> None:
        copied = hashlib.sha256()
        with self.path.open("rb") as file, durable.replacing(destination, flush=flush) as out:
            while chunk := file.read(_READ_BYTES):
                copied.update(chunk)
                out.write(chunk)
            if copied.hexdigest() != self.digest:
                raise TrustError(f"{self.path}: changed while it was copied; discarded")
