"""What a source answers, in values: bodies, facts about them, and refusals."""

from __future__ import annotations

import datetime
import email.utils
import re
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from feed.errors import TransferError

NOT_MODIFIED = 304

T = TypeVar("T")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")


_ABSENT = frozenset({403, 404, 410})  # object stores answer 403 for what isn't there


class SourceError(TransferError):
    """A source didn't give what was asked of it.

    status is its HTTP answer, None if there was none. temporary: the same
    request may succeed a moment later.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        temporary: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.status = status
        self.temporary = temporary

    @property
    def is_absent(self) -> bool:
        """Whether what was asked for isn't there, whoever asks and whenever."""
        return self.status in _ABSENT


class OversizeError(SourceError):
    """A source sent, or announced, more than was asked for."""


@dataclass(frozen=True)
class Fetched:
    """A whole answer. etag and last_modified are as the source gave them."""

    status: int
    body: bytes
    etag: str | None
    last_modified: str | None

    @property
    def not_modified(self) -> bool:
        """Whether a conditional request found nothing new; the body is empty then."""
        return self.status == NOT_MODIFIED


@dataclass
class Incoming:
    """An answer whose body is still on the road.

    start is the offset of the first byte, total the length of the whole
    file if the source said it. chunks is read once, forwards.
    """

    status: int
    start: int
    total: int | None
    etag: str | None
    last_modified: str | None
    chunks: Iterator[bytes]


class Source(Protocol):
    """What answers for URLs: feed.transport over networks, feed.filesource from a disk."""

    def fetch(
        self,
        url: str,
        *,
        limit: int,
        etag: str | None = None,
        last_modified: str | None = None,
    ) -> Fetched:
        """The whole of `url`, at most `limit` bytes. Raises SourceError, OversizeError."""
        ...

    def stream(
        self, url: str, *, limit: int, start: int = 0, if_range: str | None = None
    ) -> AbstractContextManager[Incoming]:
        """One attempt at `url` from byte `start`. Raises SourceError, OversizeError."""
        ...

    def retry(self, attempt: Callable[[], T], *, progress: Callable[[], int] = ...) -> T:
        """The result of `attempt`, repeated while it fails in ways that pass."""
        ...


def public_url(url: str) -> str:
    """`url` as it may be shown: without credentials, query and fragment."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return "(unreadable URL)"
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))


def retry_after_s(value: str | None, *, now: datetime.datetime) -> float | None:
    """What a Retry-After header asks for, in seconds from `now`; None if unreadable.

    Both forms of RFC 9110 section 10.2.3: seconds, and an HTTP date.
    """
    if value is None:
        return None
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.UTC)
    return max(0.0, (date - now).total_seconds())


def content_range(value: str | None) -> tuple[int, int | None] | None:
    """(first byte, length of the whole or None) of a Content-Range header; None if unreadable."""
    found = _CONTENT_RANGE.fullmatch((value or "").strip())
    if found is None:
        return None
    first, _, total = found.groups()
    return int(first), None if total == "*" else int(total)


def content_length(value: str | None) -> int | None:
    """A Content-Length header's number, None if there is none to read."""
    return int(value) if value is not None and re.fullmatch(r"[0-9]{1,19}", value) else None
