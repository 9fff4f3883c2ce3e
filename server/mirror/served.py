"""The served folder: its files, and the one order in which they change.

Files that nothing refers to yet come first, then the metadata that refers to
them, timestamp.json last, so a process killed anywhere leaves the old feed or
the new one. Everything but timestamp.json is named after its version or its
digest and never changes under its name.

 * Links and devices below the folder are nobody's files: they are taken away,
   never followed. The folder itself may be a link, to a larger disk.
 * Clients look for new roots before anything else. A root goes after the
   timestamp that it vouches for, if the root before vouches for it as well;
   if it doesn't (a key was replaced a while ago) no order is right, and a kill
   in between is mended by `recover` before anything is served again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root

from feed import durable
from feed.target import safe_path
from server.mirror.roots import ROOT

PUBLIC_MODE = 0o644  # what is signed is for everybody; nginx may serve it
FOLDER_MODE = 0o755
TIMESTAMP = "timestamp.json"
UNREADABLE = frozenset({errno.EIO, errno.ENOENT, errno.EUCLEAN})  # gone with its disk's sectors
METADATA, TARGETS = "metadata", "targets"


class Served:
    """A feed's folder, with metadata/ and targets/ below it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metadata = folder / METADATA
        self.targets = folder / TARGETS

    def prepare(self) -> list[str]:
        """Make the folders, and take away what isn't a feed's: leftovers, links, devices.

        Returns the links and devices that there were.
        """
        self.folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        self.recover()
        shutil.rmtree(self._staging, ignore_errors=True)
        foreign = _foreign(self.folder)
        for path in foreign:
            durable.remove(path)
        for folder in (self.metadata, self.targets):
            _make_folder(folder)
        for entry in list(_entries(self.folder)):
            if entry.name.startswith(durable.TEMP_PREFIX) and entry.is_file(follow_symlinks=False):
                Path(entry.path).unlink()
        return [self.told(path) for path in foreign]

    def told(self, path: Path) -> str:
        """A path below the folder as text, whatever bytes its name has."""
        return os.fsencode(path.relative_to(self.folder)).decode(errors="replace")

    def files(self) -> dict[str, int]:
        """Every target file, {path below targets: bytes}."""
        return {
            path.relative_to(self.targets).as_posix(): path.lstat().st_size
            for path in _regular(self.targets)
        }

    def metadata_files(self) -> dict[str, Path]:
        """Every metadata file by name."""
        return {path.name: path for path in _regular(self.metadata)}

    def target(self, served: str) -> Path:
        """Where a target is, by its path as served."""
        return self.targets / safe_path(served)

    def place(self, source: Path, served: str) -> None:
        """Move a finished file to where it is served, durably."""
        goal = self.target(served)
        _make_folder(goal.parent)
        _clear(goal)
        source.chmod(PUBLIC_MODE)
        try:
            durable.rename(source, goal)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with source.open("rb") as content, durable.replacing(goal, mode=PUBLIC_MODE) as out:
                shutil.copyfileobj(content, out, 1 << 20)
            source.unlink()

    def lacks(self, metadata: Mapping[str, bytes]) -> bool:
        """Whether any of the metadata isn't served as it is."""
        return any(not _holds(self.metadata / name, data) for name, data in metadata.items())

    def switch(self, metadata: Mapping[str, bytes]) -> None:
        """Serve this metadata; what it refers to has been placed.

        All of it is on the disk before the first name changes: a full disk is
        no reason to stop half way.
        """
        shutil.rmtree(self._staging, ignore_errors=True)
        _make_folder(self._staging)
        for name, data in metadata.items():
            if not _holds(self.metadata / name, data):
                durable.replace(self._staging / name, data, mode=PUBLIC_MODE)
        durable.rename(self._staging, self._switching)
        self.recover()

    def recover(self) -> None:
        """End the switch that a killed process had begun, if there is one. Needs no source."""
        if not self._switching.is_dir():
            return
        for name in self._order([path.name for path in self._switching.iterdir()]):
            _clear(self.metadata / name)
            durable.rename(self._switching / name, self.metadata / name)
        self._switching.rmdir()
        durable.sync_directory(self.folder)

    @property
    def _staging(self) -> Path:
        return self.folder / ".switch"

    @property
    def _switching(self) -> Path:
        return self.folder / ".switching"

    def _order(self, names: Collection[str]) -> list[str]:
        roots = sorted(name for name in names if ROOT.fullmatch(name))
        last = [TIMESTAMP] if TIMESTAMP in names else []
        rest = [name for name in names if name not in roots and name not in last]
        is_vouched = not last or self._is_vouched(self._switching / TIMESTAMP)
        return [*rest, *last, *roots] if is_vouched else [*rest, *roots, *last]

    def _is_vouched(self, timestamp: Path) -> bool:
        """Whether clients that know only the roots served so far accept this timestamp."""
        versions = [int(found[1]) for name in self.metadata_files() if (found := ROOT.match(name))]
        if not versions:
            return False
        newest = self.metadata / f"{max(versions)}.root.json"
        try:
            root = Metadata[Root].from_bytes(newest.read_bytes()).signed
            new = Metadata.from_bytes(timestamp.read_bytes())
            root.verify_delegate("timestamp", new.signed_bytes, new.signatures)
        except (RepositoryError, ValueError):
            return False
        return True

    def prune(self, keep: Collection[str]) -> int:
        """Delete every file that isn't in `keep` (paths below the folder). Returns the bytes."""
        freed = 0
        for path in [*_regular(self.targets), *_regular(self.metadata)]:
            name = path.relative_to(self.folder).as_posix()
            if name in keep or ROOT.fullmatch(path.name) or path.name == TIMESTAMP:
                continue
            freed += path.lstat().st_size
            durable.remove(path)
            with contextlib.suppress(OSError):  # not empty
                path.parent.rmdir()
                path.parent.parent.rmdir()
        _make_folder(self.metadata)
        _make_folder(self.targets)
        return freed


def is_intact(path: Path, digest: str) -> bool:
    """Whether the file has that SHA-256; one that its disk doesn't give back hasn't."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        return False


def size_of(path: Path) -> int | None:
    """A regular file's bytes, None if there is none."""
    try:
        facts = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return facts.st_size if stat.S_ISREG(facts.st_mode) else None


def _holds(path: Path, data: bytes) -> bool:
    return size_of(path) == len(data) and path.read_bytes() == data


def _make_folder(folder: Path) -> None:
    """Make `folder` and those above it, durably, in place of files that are in the way."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    durable.remove(folder)
    folder.mkdir(mode=FOLDER_MODE)
    folder.chmod(FOLDER_MODE)
    durable.sync_directory(folder.parent)


def _clear(goal: Path) -> None:
    """Take away a folder that is where a file belongs."""
    if goal.is_dir():
        shutil.rmtree(goal)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below `folder`; links aren't followed."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path))


def _regular(folder: Path) -> Iterator[Path]:
    if folder.is_symlink():
        return
    for entry in _entries(folder):
        if entry.is_file(follow_symlinks=False) and not entry.name.startswith(durable.TEMP_PREFIX):
            yield Path(entry.path)


def _foreign(folder: Path) -> list[Path]:
    """What is neither a file nor a folder."""
    return [
        Path(entry.path)
        for entry in _entries(folder)
        if not entry.is_file(follow_symlinks=False) and not entry.is_dir(follow_symlinks=False)
    ]
