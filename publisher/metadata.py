"""Names of roles, and their files: what python-tuf leaves to a repository."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from publisher.errors import DamageError

ROOT, TARGETS, SNAPSHOT, TIMESTAMP = "root", "targets", "snapshot", "timestamp"
TOP_LEVEL = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)
RELEASES, ROLLOUT = "releases", "rollout"

PUBLIC_MODE = 0o644  # a web server reads the feed as somebody else


def component_paths(role: str) -> list[str]:
    """The target paths that a delegated role may sign."""
    if role in {RELEASES, ROLLOUT}:
        return [f"{role}/*.json"]
    return [f"components/{role}/*/*"]


def newest_root(folder: Path) -> int:
    """The version of the newest root in `folder`: clients find it by counting too.

    Raises DamageError: there is none.
    """
    version = 0
    while (folder / f"{version + 1}.root.json").exists():
        version += 1
    if not version:
        raise DamageError(f"{folder}: there is no 1.root.json; restore the feed from its copy")
    return version


def read(path: Path) -> Metadata[Any]:
    """The metadata in `path`, not verified.

    Raises DamageError: missing, or not TUF metadata.
    """
    try:
        return Metadata.from_bytes(path.read_bytes())
    except OSError as error:
        raise DamageError(
            f"{path}: can't be read ({error.strerror}); restore the feed folder from its copy"
        ) from error
    except (DeserializationError, RepositoryError) as error:
        raise DamageError(
            f"{path}: not TUF metadata ({error}); restore the feed folder from its copy"
        ) from error


def serialize(metadata: Metadata[Any]) -> bytes:
    """As it is published: without white space, machines read it."""
    return metadata.to_bytes(JSONSerializer(compact=True))


def digest_of(data: bytes) -> str:
    """Lowercase hex SHA-256."""
    return hashlib.sha256(data).hexdigest()
