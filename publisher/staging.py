"""Prepared releases that wait to be published.

<staging>/<id>/stage.json          what is to be signed (Staged)
<staging>/<id>/targets/…           files, laid out as in the feed

stage.json is written last and the folder renamed into place, so a folder with
a release's name is complete. Publishing moves the files and removes the folder
at the very end: a run that was killed is simply run again.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
from tuf.api.metadata import TargetFile

from feed import durable
from feed.manifest import Release
from publisher.catalogue import digest_file
from publisher.errors import DamageError, RefusedError
from publisher.home import make_folder
from publisher.increments import Made
from publisher.metadata import PUBLIC_MODE

STAGE_NAME = "stage.json"


class StagedTarget(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file that `role` is to sign."""

    role: str
    path: str
    length: int
    sha256: str
    custom: dict[str, str | int] | None = None

    def as_target(self) -> TargetFile:
        """The same as TUF metadata."""
        extra = {"custom": self.custom} if self.custom is not None else None
        return TargetFile(self.length, {"sha256": self.sha256}, self.path, extra)


class ComponentReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a component came into a release: origin is new, reused or carried.

    Bytes; zst_bytes is None if the compressed copy isn't smaller. zst_level is
    the zstd level that paid, zst_cpu_s what finding it and compressing took.
    """

    name: str
    version: str
    digest: str
    origin: str
    full_bytes: int
    zst_bytes: int | None = None
    zst_level: int | None = None
    zst_cpu_s: float = 0.0
    increments: tuple[Made, ...] = ()


class Staged(msgspec.Struct, frozen=True, kw_only=True):
    """A prepared release. based_on is the version of the releases role it was prepared against."""

    release: Release
    based_on: int
    targets: tuple[StagedTarget, ...]
    components: tuple[ComponentReport, ...]


class Workspace:
    """A release's folder while it is being filled."""

    def __init__(self, staging: Path, release_id: str) -> None:
        self._final = staging / release_id
        self.folder = staging / f"{durable.TEMP_PREFIX}{release_id}"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.scratch = self.folder / "scratch"
        self.scratch.mkdir()

    def file(self, prefixed_path: str) -> Path:
        """Where to put a target, by its hash-prefixed path; the folder exists."""
        path = self.folder / "targets" / prefixed_path
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add(self, target: StagedTarget, content: Path) -> Path:
        """Move `content` to where the feed will have it."""
        path = self.file(target.as_target().get_prefixed_paths()[0])
        content.replace(path)
        path.chmod(PUBLIC_MODE)
        return path

    def finish(self, staged: Staged) -> None:
        """Make it a prepared release, durably, in place of an earlier try."""
        shutil.rmtree(self.scratch)
        (self.folder / STAGE_NAME).write_bytes(msgspec.json.encode(staged))
        durable.sync_tree(self.folder)
        shutil.rmtree(self._final, ignore_errors=True)
        durable.rename(self.folder, self._final)

    def discard(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.folder, ignore_errors=True)


def listed(staging: Path) -> list[str]:
    """Ids of prepared releases."""
    return sorted(path.parent.name for path in staging.glob(f"[!.]*/{STAGE_NAME}"))


def load(staging: Path, release_id: str) -> Staged:
    """A prepared release.

    Raises RefusedError: there is none of that id. DamageError.
    """
    path = staging / release_id / STAGE_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Staged)
    except FileNotFoundError as error:
        raise RefusedError(
            f"release {release_id} isn't prepared; run `publisher release {release_id} …` first"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamageError(
            f"{path}: {error}; prepare it again with `publisher release {release_id} …`"
        ) from error


def choose(staging: Path, release_id: str | None) -> Staged | None:
    """The prepared release to publish: the named one, or the only one; None if there is none.

    Raises RefusedError: unknown, or several and none is named.
    """
    if release_id is not None:
        return load(staging, release_id)
    waiting = listed(staging)
    if len(waiting) > 1:
        raise RefusedError(
            f"releases {', '.join(waiting)} are prepared; name one: `publisher publish RELEASE_ID`"
        )
    return load(staging, waiting[0]) if waiting else None


def sweep(staging: Path) -> None:
    """Delete what runs that were killed left behind. The caller holds the lock."""
    for path in staging.glob("*"):
        if not (path / STAGE_NAME).exists() or path.name.startswith("."):
            shutil.rmtree(path)


def place(staging: Path, staged: Staged, targets: Path) -> None:
    """Move a prepared release's files into the feed; those already there stay.

    Every file that is about to be signed is read once more: what was altered
    since it was prepared is never signed.

    Raises DamageError.
    """
    folder = staging / staged.release.id / "targets"
    for target in staged.targets:
        _check(target, folder, targets, staged.release.id)
    for path in _files(folder):
        goal = targets / path.relative_to(folder)
        make_folder(goal.parent)
        _move(path, goal)


def remove(staging: Path, release_id: str) -> None:
    """Forget a prepared release; its marker first, so that half a folder is no release."""
    durable.remove(staging / release_id / STAGE_NAME)
    shutil.rmtree(staging / release_id)
    durable.sync_directory(staging)


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def _check(target: StagedTarget, folder: Path, targets: Path, release_id: str) -> None:
    relative = target.as_target().get_prefixed_paths()[0]
    for path in (folder / relative, targets / relative):
        if path.exists():
            if path.stat().st_size == target.length and digest_file(path) == target.sha256:
                return
            raise DamageError(
                f"{path}: altered since it was prepared; prepare the release again with "
                f"`publisher release {release_id} …`"
            )
    raise DamageError(
        f"{folder / relative}: missing; prepare the release again with "
        f"`publisher release {release_id} …`"
    )


def _move(path: Path, goal: Path) -> None:
    try:
        durable.rename(path, goal)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with path.open("rb") as source, durable.replacing(goal, mode=PUBLIC_MODE) as sink:
            shutil.copyfileobj(source, sink)
