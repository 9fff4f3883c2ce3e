"""The work folder of the release desk, and who may work in it.

<home>/publisher.toml     settings
<home>/keys/              one file a key, and keys.toml (publisher.keys)
<home>/feed/metadata/     the published feed: what a web server serves
<home>/feed/targets/
<home>/staging/<id>/      releases that are prepared and not yet published
<home>/publisher.lock     held by the one process that changes the feed or the keys
<home>/staging.lock       held by the one process that prepares or places a release

Two locks, because a halt mustn't wait for a build. Who needs both takes
publisher.lock first.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from feed import durable
from publisher import settings
from publisher.errors import HomeError
from publisher.keys import Keyring
from publisher.repository import Clock, Repository, utc_now
from publisher.settings import Settings

HOME_ENV = "HOLDFAST_PUBLISHER_HOME"


@dataclass(frozen=True)
class Home:
    """Every path."""

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / "publisher.toml"

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    @property
    def feed(self) -> Path:
        return self.path / "feed"

    @property
    def metadata(self) -> Path:
        return self.feed / "metadata"

    @property
    def targets(self) -> Path:
        return self.feed / "targets"

    @property
    def staging(self) -> Path:
        return self.path / "staging"

    @property
    def lock(self) -> Path:
        return self.path / "publisher.lock"

    @property
    def staging_lock(self) -> Path:
        return self.path / "staging.lock"


@dataclass(frozen=True)
class Desk:
    """An opened work folder: settings, keys and the feed as it stands."""

    home: Home
    settings: Settings
    keyring: Keyring
    repository: Repository


def default_path() -> Path:
    """HOLDFAST_PUBLISHER_HOME, or the current folder."""
    return Path(os.environ.get(HOME_ENV) or ".").absolute()


def look(path: Path, *, clock: Clock = utc_now) -> Desk:
    """Open `path` to read. Consistent while somebody publishes.

    Raises HomeError: not a work folder. SettingsError, DamageError.
    """
    home = Home(path.absolute())
    if not home.settings.exists() or not home.metadata.exists():
        raise HomeError(
            f"{home.path} is no publisher's folder; run `publisher init` there, or give "
            f"--home PATH or {HOME_ENV}"
        )
    chosen = settings.load(home.settings)
    keyring = Keyring(home.keys)
    repository = Repository.load(
        home.metadata, keyring=keyring, expiry=chosen.expiry_days, clock=clock
    )
    return Desk(home, chosen, keyring, repository)


@contextlib.contextmanager
def work(path: Path, *, clock: Clock = utc_now) -> Iterator[Desk]:
    """Open `path` to change its feed or keys, alone.

    Raises HomeError: another process is at it. SettingsError, DamageError.
    """
    home = Home(path.absolute())
    if not home.path.is_dir():
        raise HomeError(f"{home.path} doesn't exist; run `publisher init` there")
    with locked(home.lock, doing="changing the feed"):
        yield look(path, clock=clock)


@contextlib.contextmanager
def locked(lock: Path, *, doing: str) -> Iterator[None]:
    """Hold `lock`. The system drops it when the process dies.

    Raises HomeError: somebody else holds it, and so is `doing` what we want to.
    """
    with lock.open("a+b") as file:
        try:
            _lock(file)
        except OSError as error:
            raise HomeError(
                f"another publisher is {doing} in {lock.parent}; run again when it has ended"
            ) from error
        yield


def _lock(file: BinaryIO) -> None:
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415 - Windows only

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl  # noqa: PLC0415 - not on Windows

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents, readable for all, durably."""
    missing = [item for item in (folder, *folder.parents) if not item.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for item in missing:
        durable.sync_directory(item.parent)
