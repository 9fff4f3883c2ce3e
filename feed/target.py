"""A target of any TUF repository against what is signed about it."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import TargetFile

from feed.errors import TrustError


def safe_path(target_path: str) -> PurePosixPath:
    """A target's path as one below any folder, on any system.

    Raises TrustError: it would lead out of the folder.
    """
    parts = target_path.split("/")
    if any(part in ("", ".", "..") or set(part) & set("\\:\0") for part in parts):
        raise TrustError(f"target {target_path!r}: not a path below a folder; refused")
    return PurePosixPath(*parts)


def is_verified(path: Path, target: TargetFile) -> bool:
    """Whether the file at `path` is the target, whole."""
    try:
        with path.open("rb") as file:
            target.verify_length_and_hashes(file)
    except (OSError, LengthOrHashMismatchError):
        return False
    return True


class TargetCheck:
    """Length and every signed digest, while the bytes pass by."""

    def __init__(self, target: TargetFile) -> None:
        self._target = target
        self._received = 0
        self._digests = {name: self._new(name) for name in target.hashes}

    def _new(self, name: str) -> hashlib._Hash:
        try:
            return hashlib.new(name)
        except ValueError as error:
            raise TrustError(
                f"target {self._target.path}: signed with a {name!r} digest, "
                "which can't be checked here"
            ) from error

    def add(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self._received += len(chunk)
        for digest in self._digests.values():
            digest.update(chunk)

    def finish(self) -> None:
        """Raise TrustError unless everything came and is what was signed."""
        target = self._target
        if self._received != target.length:
            raise TrustError(
                f"target {target.path}: {self._received:,} bytes came, "
                f"{target.length:,} are signed; discarded"
            )
        for name, digest in self._digests.items():
            if digest.hexdigest() != target.hashes[name]:
                raise TrustError(
                    f"target {target.path}: its {name} is {digest.hexdigest()}, "
                    f"{target.hashes[name]} is signed; discarded"
                )
