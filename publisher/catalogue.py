"""What a feed offers, read from its signed metadata and the manifests it vouches for."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

import msgspec
from tuf.api.metadata import TargetFile

from feed import manifest, rollout, version
from feed.manifest import Release
from feed.rollout import RolloutPlan
from publisher.errors import DamageError, RefusedError
from publisher.metadata import RELEASES, ROLLOUT
from publisher.repository import Repository

READ_CHUNK = 1 << 20


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """A published version of a component; length in bytes."""

    version: str
    digest: str
    length: int


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A published release; sequence counts publications from 1."""

    id: str
    sequence: int


class Catalogue:
    """A repository's releases, payloads and plans. `targets` is the feed's folder of files."""

    def __init__(self, repository: Repository, targets: Path) -> None:
        self._repository = repository
        self._targets = targets

    def payloads(self, name: str) -> list[Payload]:
        """Published versions of a component, newest first; none for an unknown one."""
        if name not in self._repository.components:
            return []
        found = [
            Payload(
                version=path.split("/")[2], digest=target.hashes["sha256"], length=target.length
            )
            for path, target in self._repository.targets(name).targets.items()
            if path.endswith("/full")
        ]
        return sorted(found, key=lambda item: version.parse(item.version), reverse=True)

    def increments(self, name: str) -> list[tuple[str, str, TargetFile]]:
        """(old, new, target) of every listed incremental of a component."""
        return [
            (path.rpartition("/from-")[2].removesuffix(".delta"), path.split("/")[2], target)
            for path, target in self._repository.targets(name).targets.items()
            if path.endswith(".delta")
        ]

    def predecessors(self, name: str, new: str) -> tuple[str, ...]:
        """Versions from which a listed incremental leads to `new`, newest first."""
        olds = [old for old, to, _ in self.increments(name) if to == new]
        return tuple(sorted(olds, key=version.parse, reverse=True))

    def releases(self) -> list[Listed]:
        """Published releases, oldest first."""
        found = [
            Listed(
                id=PurePosixPath(path).name.removesuffix(".json"),
                sequence=(target.custom or {}).get("sequence", 0),
            )
            for path, target in self._repository.targets(RELEASES).targets.items()
        ]
        return sorted(found, key=lambda item: (item.sequence, item.id))

    def sequence(self, release_id: str) -> int:
        """A release's place in the order of publication.

        Raises RefusedError: it isn't published.
        """
        listed = self.releases()
        for item in listed:
            if item.id == release_id:
                return item.sequence
        newest = ", ".join(item.id for item in listed[-5:]) or "none yet"
        raise RefusedError(
            f"release {release_id} isn't published (the newest are: {newest}); see `publisher show`"
        )

    def release(self, release_id: str) -> Release:
        """A published manifest.

        Raises RefusedError: not published. DamageError: the file isn't what was signed.
        """
        self.sequence(release_id)
        path = manifest.release_path(release_id)
        target = self._repository.targets(RELEASES).targets[path]
        return manifest.parse(self._content(target), expected_id=release_id)

    def plan(self, region: str) -> RolloutPlan | None:
        """A region's signed plan, None before its first."""
        target = self._repository.targets(ROLLOUT).targets.get(manifest.rollout_path(region))
        return rollout.parse(self._content(target), region=region) if target else None

    def plans(self) -> list[RolloutPlan]:
        """Every region's plan."""
        regions = sorted(
            PurePosixPath(path).name.removesuffix(".json")
            for path in self._repository.targets(ROLLOUT).targets
        )
        return [plan for plan in map(self.plan, regions) if plan]

    def file(self, path: str) -> Path:
        """Where the feed keeps a listed component target."""
        target = self._repository.targets(path.split("/")[1]).targets[path]
        return self._targets / target.get_prefixed_paths()[0]

    def _content(self, target: TargetFile) -> bytes:
        path = self._targets / target.get_prefixed_paths()[0]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DamageError(
                f"{path}: can't be read ({error.strerror}); restore the feed folder from its copy"
            ) from error
        if hashlib.sha256(data).hexdigest() != target.hashes["sha256"]:
            raise DamageError(
                f"{path}: isn't what was signed; restore the feed folder from its copy"
            )
        return data


def digest_file(path: Path) -> str:
    """Lowercase hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
