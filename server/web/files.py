"""The feed over HTTP: metadata/ and targets/ of one folder, for everybody.

A raw ASGI application below /feed. Nothing here is secret and nothing is
trusted: what is served is signed, and whoever fetches it verifies it.

 * GET and HEAD, one Range, If-Range, If-None-Match; strong ETags.
 * Only metadata/timestamp.json ever changes. Everything else has its digest or
   its version in its name and may be kept for good.
 * No link is followed below the folder, no folder is listed, and no name that
   begins with a dot exists.
 * The kernel sends the file itself (sendfile) on a plain connection of ours;
   elsewhere it is read in large pieces by threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from feed.messages import FEED_PATH
from server.errors import RefusedError, missing
from server.web import problems
from server.web.asgi import Headers, Receive, Scope, Send, header, state

FOLDERS = ("metadata", "targets")
CHANGES = ["metadata", "timestamp.json"]  # the one file that is replaced
FOREVER = b"public, max-age=31536000, immutable"
ASK_AGAIN = b"no-cache"
READ_BYTES = 512 << 10
SEGMENTS_MAX = 16
NAME_BYTES_MAX = 255

_DIGEST = re.compile(r"([0-9a-f]{64})\.")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_FOLDER_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


@dataclass(frozen=True)
class Opened:
    """A regular file, open for reading."""

    descriptor: int
    size: int
    etag: str


@dataclass(frozen=True)
class Part:
    """What of the file is asked for."""

    start: int
    length: int
    is_whole: bool


class FeedFiles:
    """The application. A folder that isn't there (yet) holds nothing: 404."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def is_there(self) -> bool:
        """Whether a feed is served: its timestamp is the last thing that a switch writes."""
        return (self._folder / "metadata" / "timestamp.json").is_file()

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        try:
            if scope["method"] not in {"GET", "HEAD"}:
                raise RefusedError("only GET and HEAD", status=405, code="method_not_allowed")
            names = _names(scope["path"])
            with self._open(names) as opened:
                await _serve(scope, send, opened, names)
        except RefusedError as error:
            refusal = problems.of(error)
            if error.status == 405:
                refusal = problems.with_headers(refusal, allow="GET, HEAD")
            await problems.answer(scope, send, refusal)

    @contextlib.contextmanager
    def _open(self, names: list[str]) -> Iterator[Opened]:
        """The file of this name, reached without any link."""
        try:
            descriptor = _descend(self._folder, names)
        except OSError as error:
            raise missing("file", "/".join(names)[:200]) from error
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise missing("file", "/".join(names)[:200])
            yield Opened(descriptor, found.st_size, etag(names[-1], found))
        finally:
            os.close(descriptor)


def _names(path: str) -> list[str]:
    """The folders and the file that a request's path names; RefusedError 404 for all else."""
    names = path.removeprefix(f"{FEED_PATH}/").split("/")
    is_odd = len(names) < 2 or len(names) > SEGMENTS_MAX or names[0] not in FOLDERS
    if is_odd or not all(map(_is_name, names)):
        raise missing("file", "/".join(names)[:200])
    return names


def _is_name(name: str) -> bool:
    forbidden = not name or name[0] == "." or "\\" in name or "\0" in name
    return not forbidden and len(os.fsencode(_plain(name))) <= NAME_BYTES_MAX


def _plain(name: str) -> str:
    return name.encode("utf-8", "replace").decode()


def _descend(folder: Path, names: list[str]) -> int:
    """A descriptor of the file; each step is taken from the last one's descriptor."""
    place = os.open(folder, _FOLDER_FLAGS)  # the folder itself may be a link: it is configured
    try:
        for name in names[:-1]:
            inner = os.open(name, _FOLDER_FLAGS | _NO_LINK, dir_fd=place)
            os.close(place)
            place = inner
        return os.open(names[-1], os.O_RDONLY | _NO_LINK, dir_fd=place)
    finally:
        os.close(place)


def etag(name: str, found: os.stat_result) -> str:
    """The digest in the file's name, else what tells one version of a file from the next.

    A compressed copy carries the digest of its content, and two servers may
    have compressed it differently, so a part of one must not be joined to the
    other's.
    """
    digest = _DIGEST.match(name)
    if digest and not name.endswith(".zst"):
        return f'"{digest[1]}"'
    return f'"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"'


async def _serve(scope: Scope, send: Send, opened: Opened, names: list[str]) -> None:
    fields = _fields(opened, names)
    if _is_known(scope, opened):
        await _head(send, 304, fields)
        await send({"type": "http.response.body", "body": b""})
        return
    part = wanted(header(scope, b"range"), header(scope, b"if-range"), opened)
    if part is None:
        said = [(b"content-range", f"bytes */{opened.size}".encode()), (b"content-length", b"0")]
        await _head(send, 416, [*said, (b"cache-control", b"no-store")])
        await send({"type": "http.response.body", "body": b""})
        return
    fields.append((b"content-length", str(part.length).encode()))
    if not part.is_whole:
        last = part.start + part.length - 1
        fields.append((b"content-range", f"bytes {part.start}-{last}/{opened.size}".encode()))
    await _head(send, 200 if part.is_whole else 206, fields)
    if scope["method"] == "GET" and part.length:
        await _body(scope, send, opened, part)
    await send({"type": "http.response.body", "body": b""})


def _fields(opened: Opened, names: list[str]) -> Headers:
    kind = b"application/json" if names[-1].endswith(".json") else b"application/octet-stream"
    return [
        (b"content-type", kind),
        (b"etag", opened.etag.encode()),
        (b"cache-control", ASK_AGAIN if names == CHANGES else FOREVER),
        (b"accept-ranges", b"bytes"),
        (b"x-content-type-options", b"nosniff"),
    ]


async def _head(send: Send, status: int, fields: Headers) -> None:
    await send({"type": "http.response.start", "status": status, "headers": fields})


def _is_known(scope: Scope, opened: Opened) -> bool:
    """Whether If-None-Match names this version; its comparison is the weak one (RFC 9110)."""
    given = header(scope, b"if-none-match")
    if given is None:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in given.split(",")}
    return opened.etag in tags or "*" in tags


def wanted(asked: str | None, if_range: str | None, opened: Opened) -> Part | None:
    """The part that a Range asks for; None where the file has no such part.

    What isn't one range of bytes, or belongs to another version, means the
    whole file (RFC 9110, section 14.2).
    """
    whole = Part(0, opened.size, is_whole=True)
    found = _RANGE.fullmatch(asked.strip()) if asked else None
    if found is None or (if_range is not None and if_range.strip() != opened.etag):
        return whole
    first, last = found[1], found[2]
    if not first:
        return _tail(int(last), opened.size) if last else whole
    start, end = int(first), int(last) if last else opened.size - 1
    if last and end < start:
        return whole
    if start >= opened.size:
        return None
    return Part(start, min(end, opened.size - 1) - start + 1, is_whole=False)


def _tail(length: int, size: int) -> Part | None:
    length = min(length, size)
    return Part(size - length, length, is_whole=False) if length else None


async def _body(scope: Scope, send: Send, opened: Opened, part: Part) -> None:
    wire = state(scope).get("wire")
    if wire is not None and wire.sends_files:
        await wire.send_file(opened.descriptor, part.start, part.length)
        return
    at, end = part.start, part.start + part.length
    while at < end and not (wire is not None and wire.is_gone):
        piece = await asyncio.to_thread(os.pread, opened.descriptor, min(READ_BYTES, end - at), at)
        if not piece:  # cut short on the disk: only the connection's end can say so now
            if wire is not None:
                await wire.end()
            return
        at += len(piece)
        await send({"type": "http.response.body", "body": piece, "more_body": True})
