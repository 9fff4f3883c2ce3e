"""A feed on a disk, answering as an HTTP server would: air-gapped sites use it.

Regular files only: a FIFO or a device would hang or never end. A file's ETag
is made of its identity, size and time of change.
"""

from __future__ import annotations

import contextlib
import os
import stat
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from feed.source import NOT_MODIFIED, Fetched, Incoming, OversizeError, SourceError, public_url

CHUNK_BYTES = 256 << 10

T = TypeVar("T")


@contextlib.contextmanager
def open_file(url: str, *, limit: int, start: int, etag: str | None) -> Iterator[Incoming]:
    """The file that `url` names, from byte `start`.

    Raises SourceError: status 404 if it is missing, 403 if it can't be read
    or is no regular file, 416 if it ends before `start`; OversizeError.
    """
    path = path_of(url)
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
    except FileNotFoundError as error:
        raise SourceError(f"{path}: no such file", status=404) from error
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: can't be read ({_reason(error)})", status=403) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceError(f"{path}: not a regular file", status=403)
    with os.fdopen(descriptor, "rb") as file:
        yield _answer(path, file, limit=limit, start=start, etag=etag)


class FileSource:
    """A feed.source.Source for file URLs alone: no network, and nothing loaded that has one."""

    def fetch(
        self,
        url: str,
        *,
        limit: int,
        etag: str | None = None,
        last_modified: str | None = None,  # noqa: ARG002 - files have ETags
    ) -> Fetched:
        """The whole file. Raises SourceError, OversizeError."""
        with open_file(url, limit=limit, start=0, etag=etag) as found:
            body = b"".join(found.chunks)
            return Fetched(found.status, body, found.etag, found.last_modified)

    def stream(
        self,
        url: str,
        *,
        limit: int,
        start: int = 0,
        if_range: str | None = None,  # noqa: ARG002 - a file is read in one go
    ) -> contextlib.AbstractContextManager[Incoming]:
        """The file from byte `start`. Raises SourceError, OversizeError."""
        return open_file(url, limit=limit, start=start, etag=None)

    def retry(self, attempt: Callable[[], T], *, progress: Callable[[], int] = lambda: 0) -> T:  # noqa: ARG002
        """Once: a file that can't be read now can't be read a moment later."""
        return attempt()


_BINARY = getattr(os, "O_BINARY", 0)


def path_of(url: str) -> Path:
    """The path a file URL names.

    Raises SourceError: it names another machine (Windows shares are fine there).
    """
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc if parts.netloc != "localhost" else ""
    if host and os.name != "nt":
        raise SourceError(f"{public_url(url)}: a file URL has three slashes and no host")
    return Path(urllib.request.url2pathname(f"//{host}{parts.path}" if host else parts.path))


def _answer(path: Path, file: BinaryIO, *, limit: int, start: int, etag: str | None) -> Incoming:
    facts = os.fstat(file.fileno())
    if facts.st_size > limit:
        raise OversizeError(f"{path}: {facts.st_size:,} bytes, expected at most {limit:,}")
    if start and start >= facts.st_size:
        raise SourceError(f"{path}: {facts.st_size:,} bytes, nothing at {start:,}", status=416)
    own = f'"{facts.st_ino:x}-{facts.st_size:x}-{facts.st_mtime_ns:x}"'
    if etag == own:
        return Incoming(NOT_MODIFIED, 0, None, own, None, iter(()))
    file.seek(start)
    chunks = _chunks(path, file, facts.st_size - start)
    return Incoming(206 if start else 200, start, facts.st_size, own, None, chunks)


def _chunks(path: Path, file: BinaryIO, left: int) -> Iterator[bytes]:
    """Exactly what was there when the file was opened, however it grows meanwhile."""
    while left:
        try:
            chunk = file.read(min(CHUNK_BYTES, left))
        except OSError as error:
            raise SourceError(f"{path}: reading failed ({_reason(error)})") from error
        if not chunk:
            raise SourceError(f"{path}: shrank while it was read", temporary=True)
        left -= len(chunk)
        yield chunk


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
