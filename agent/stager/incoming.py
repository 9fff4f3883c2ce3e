"""Read what the fetcher handed over, without trusting the folder it lies in.

The fetcher owns incoming/ and may be compromised: no link is followed, nothing
but regular files is opened, and a file is copied while it is digested, because
what was checked in place could be swapped afterwards.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from agent import host
from feed import durable
from feed.errors import TrustError

CHUNK = 1 << 20
METADATA_FILES_MAX = 600
METADATA_BYTES_MAX = 8 << 20  # a file; the trust layer sets its own, lower limits


@contextmanager
def opened(folder: Path, path: str) -> Iterator[BinaryIO]:
    """The regular file `path`, relative with '/', below `folder`.

    Raises TrustError: a link, a device, or something that isn't there.
    """
    for name in path.split("/"):
        if name in {"", ".", ".."}:
            raise TrustError(f"{name!r} is no part of a path")
    try:
        file = host.open_below(folder, path)
    except OSError as error:
        raise TrustError(
            f"the fetcher handed over no usable {path} ({error.strerror}); nothing was staged"
        ) from error
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise TrustError(f"the fetcher handed over {path}, which is no regular file")
        yield file


def has(folder: Path, path: str) -> bool:
    """Whether there is something at `path`; `copy` decides whether it is any good."""
    return (folder / path).is_file()


def copy(folder: Path, path: str, out: BinaryIO, *, length: int, digest: str) -> None:
    """Copy a signed file to `out` while holding it against its length and SHA-256.

    Raises TrustError: it isn't what was signed; `out` is then worthless.
    """
    found = hashlib.sha256()
    copied = 0
    with opened(folder, path) as file:
        while chunk := file.read(CHUNK):
            copied += len(chunk)
            if copied > length:
                break
            found.update(chunk)
            out.write(chunk)
    if copied != length or found.hexdigest() != digest:
        raise TrustError(
            f"{path} isn't what was signed: {copied:,} bytes with digest "
            f"{found.hexdigest()[:12]}…, signed are {length:,} with {digest[:12]}…"
        )


def read(folder: Path, path: str, *, length: int, digest: str, limit: int) -> bytes:
    """A small signed file, whole.

    Raises TrustError: longer than `limit` or not what was signed.
    """
    if length > limit:
        raise TrustError(f"{path} is signed with {length:,} bytes; the limit is {limit:,}")
    with opened(folder, path) as file:
        data = file.read(length + 1)
    if len(data) != length or hashlib.sha256(data).hexdigest() != digest:
        raise TrustError(f"{path} isn't what was signed")
    return data


def copy_metadata(folder: Path, target: Path) -> None:
    """Copy the handed-over metadata files to `target`, a private folder.

    Raises TrustError: too many, too large, or not plain files.
    """
    target.mkdir(mode=0o700, parents=True)
    try:
        names = sorted(path.name for path in (folder / "metadata").iterdir())
    except OSError as error:
        raise TrustError(f"the fetcher handed over no metadata ({error.strerror})") from error
    if len(names) > METADATA_FILES_MAX:
        raise TrustError(f"{len(names)} metadata files; the limit is {METADATA_FILES_MAX}")
    for name in names:
        with (
            opened(folder, f"metadata/{name}") as file,
            durable.open_private(target / name) as out,
        ):
            data = file.read(METADATA_BYTES_MAX + 1)
            if len(data) > METADATA_BYTES_MAX:
                raise TrustError(f"metadata/{name} is over {METADATA_BYTES_MAX:,} bytes")
            out.write(data)
