"""The whole chain of roots: an agent that trusts the first one has to find each that follows.

A mirror that was given a later root to begin with lacks those before it. They
are fetched and served only as far as each vouches for the next.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root

from feed.errors import TransferError

ROOT_BYTES_MAX = 512_000  # python-tuf's own limit

ROOT = re.compile(r"([1-9][0-9]{0,8})\.root\.json")  # the name of a root, with its version


def complete(
    metadata: Mapping[str, bytes],
    *,
    served: Path,
    oldest: int | None,
    ask: Callable[[str], bytes],
) -> tuple[dict[str, bytes], int]:
    """`metadata` with the roots before its first, and the version below which there are none.

    Taken from `served` where they are there, else asked for by name. oldest is
    what an earlier call returned.
    """
    found = dict(metadata)
    version = min(int(name[1]) for name in map(ROOT.fullmatch, metadata) if name)
    while version > (oldest or 1):
        name = f"{version - 1}.root.json"
        data = _served(served / name) or _asked(name, ask)
        if data is None or not _vouches(data, version - 1, found[f"{version}.root.json"]):
            break
        found[name] = data
        version -= 1
    return found, version


def _served(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _asked(name: str, ask: Callable[[str], bytes]) -> bytes | None:
    try:
        return ask(name)
    except TransferError:
        return None


def _vouches(older: bytes, version: int, newer: bytes) -> bool:
    try:
        root = Metadata.from_bytes(older).signed
        if not isinstance(root, Root):
            return False
        after = Metadata[Root].from_bytes(newer)
        root.verify_delegate(Root.type, after.signed_bytes, after.signatures)
    except (RepositoryError, ValueError):
        return False
    return root.version == version
