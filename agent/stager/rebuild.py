"""Fill a slot: keep, rebuild or unpack each component, then make all of it durable.

Every signed file is held against its digest before a decoder sees it, and every
component's content against the release's digest before it gets its place. That
goes for files that are cloned from the active slot as well: what its seal says
of them isn't signed, and can be damaged with them.

Content is digested while it is written, and read again only to be sealed: what
the seal says of a file is what the disk gives back, and what is signed.
"""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from agent import host
from agent.channel import Handover, Host
from agent.errors import SlotError
from agent.layout import Layout
from agent.slots import seal as seals
from agent.slots.record import SlotContent, SlotName
from agent.slots.seal import Seal
from agent.stager import clone, incoming
from agent.stager.verify import Handed
from feed import delta, durable, manifest, tree
from feed.errors import ManifestError, RebuildError, TrustError
from feed.manifest import Component, Form, Release
from feed.roads import Limits

FILE_MODE = 0o444  # sealed: nobody edits a slot
PROGRAM_MODE = 0o555
FOLDER_MODE = 0o755
SCHEMA = 1
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Rebuilder:
    """Builds one slot from the active one and a verified handover."""

    def __init__(
        self,
        layout: Layout,
        handed: Handed,
        handover: Handover,
        host: Host,
        active: SlotName | None,
        limits: Limits,
    ) -> None:
        self._scratch = layout.staging
        self._handed = handed
        self._roads = handover.roads
        self._host = host
        self._active = layout.slot(active) if active else None
        self._limits = limits

    def fill(self, slot: Path, release: Release) -> tuple[SlotContent, tuple[str, ...]]:
        """Make `slot` hold `release`, sealed and durable.

        Returns what it holds and, instead of sealing, the components whose
        incrementals failed: then the slot isn't sealed and fulls are needed.
        Raises FeedError, SlotError or OSError: the slot isn't sealed.
        """
        wipe(slot)
        slot.mkdir(mode=0o755)
        failed = [item.name for item in release.components if not self._place(item, slot)]
        if failed:
            return SlotContent(release=release.id, digest=release.digest, seal=""), tuple(failed)
        _protect(slot)
        durable.sync_tree(slot)
        durable.sync_directory(slot.parent)  # without it the slot itself can vanish
        seal = Seal(
            schema=SCHEMA,
            release=release.id,
            components=release.components,
            activation=release.activation,
            health=release.health,
            files=seals.scan(slot),
        )
        for item in release.components:
            _check_sealed(item, seal)
        return seals.write(slot, seal), ()

    def _place(self, item: Component, slot: Path) -> bool:
        """Put one component into `slot`; False when its incrementals don't lead there."""
        kept = self._host.installed.get(item.name)
        if kept and kept.digest == item.digest and self._active and self._keep(item, slot):
            return True
        content = self._scratch / f"{item.name}.content"
        if incoming.has(self._handed.folder, f"targets/{_payload(item)}"):
            self._whole(item, content)
        else:
            try:
                self._rebuilt(item, content)
            except RebuildError:
                return False
        _arrange(item, content, slot / item.name)
        if item.form is Form.TREE:
            self._share(slot / item.name)
        return True

    def _keep(self, item: Component, slot: Path) -> bool:
        """Clone an unchanged component from the active slot; False when it isn't intact there."""
        if self._active is None:
            return False
        copy = self._scratch / f"{item.name}.kept"
        try:
            _clone(item, self._active / item.name, copy)
            intact = _content_digest(item, copy) == item.digest
        except (OSError, SlotError, ManifestError) as error:
            _raise_if_full(error)
            intact = False
        if intact:
            copy.replace(slot / item.name)
        else:
            shutil.rmtree(copy, ignore_errors=True)  # its room may be needed for the full
        return intact

    def _share(self, place: Path) -> None:
        """Let a changed folder's unchanged files share the active slot's blocks, moved ones too."""
        if self._active is None:
            return
        try:
            seal, _ = seals.read(self._active)
        except SlotError:
            return
        held = {
            file.digest: self._active / path
            for path, file in seal.files.items()
            if file.size >= clone.SHARED_BYTES_MIN
        }
        clone.share(place, held, self._scratch / f"{place.name}.clone")

    def _base(self, item: Component) -> Path:
        """A file with the active slot's content of a component: its own, or a tree's tar.

        It isn't digested: to a decoder it is mere bytes, and from others than
        those that were signed comes another result.
        Raises RebuildError: nothing there that could be one.
        """
        if self._active is None:
            raise RebuildError(f"{item.name}: no slot is active")
        folder = self._active / item.name
        try:
            if item.form is Form.FILE:
                return _only_file(folder)
            packed = self._scratch / f"{item.name}.base"
            with packed.open("wb") as out:
                tree.pack(folder, out)
        except (OSError, SlotError, ManifestError) as error:
            _raise_if_full(error)
            raise RebuildError(f"{item.name}: the active slot's content isn't intact") from error
        return packed

    def _whole(self, item: Component, content: Path) -> None:
        target = self._handed.payload(item)
        with content.open("wb") as out:
            incoming.copy(
                self._handed.folder,
                f"targets/{_payload(item)}",
                out,
                length=target.length,
                digest=item.digest,
            )

    def _rebuilt(self, item: Component, content: Path) -> None:
        """Apply the signed chain of incrementals to the active slot's content.

        Raises RebuildError: no base, a broken step, another result, or more work than allowed.
        """
        self._handed.payload(item)
        road = self._roads.get(item.name, ())
        installed = self._host.installed.get(item.name)
        if len(road) < 2 or installed is None or road[0] != installed.version:
            raise RebuildError(f"{item.name}: neither a full nor a usable chain was handed over")
        self._check_work(item.name, road)
        base, reached = self._base(item), installed.digest
        for old, new in itertools.pairwise(road):
            reached = self._step(item.name, old=old, new=new, base=base, reached=reached)
            base = self._result(item.name).replace(self._scratch / f"{item.name}.base")
        if reached != item.digest:
            raise RebuildError(f"{item.name}: the chain leads to {reached[:12]}…")
        base.replace(content)

    def _check_work(self, name: str, road: tuple[str, ...]) -> None:
        """The fetcher plans within the limits; what it says is held against them all the same."""
        links = len(road) - 1
        made = 0
        for old, new in itertools.pairwise(road):
            _, promise = self._handed.increment(name, old=old, new=new)
            made += promise.result_length
            if not self._limits.allow_rebuild(links=links, made=made):
                raise RebuildError(
                    f"{name}: a chain of {links} incrementals, which make {made:,} bytes, is over "
                    "the limit"
                )

    def _result(self, name: str) -> Path:
        return self._scratch / f"{name}.result"

    def _step(self, name: str, *, old: str, new: str, base: Path, reached: str) -> str:
        """Make `new` of `base`, which holds `old`; returns the result's content digest."""
        target, promise = self._handed.increment(name, old=old, new=new)
        if promise.base_digest != reached:
            raise RebuildError(f"{name}: the incremental {old} → {new} has another base")
        path = manifest.increment_path(name, old=old, new=new)
        patch = self._scratch / f"{name}.delta"
        with patch.open("wb") as out:
            incoming.copy(
                self._handed.folder,
                f"targets/{path}",
                out,
                length=target.length,
                digest=target.hashes["sha256"],
            )
        with (
            _Base(io.FileIO(base)) as old_file,
            patch.open("rb") as delta_file,
            self._result(name).open("wb") as out,
        ):
            made = delta.apply(
                old_file, delta_file, out, format=promise.format, limit=promise.result_length
            )
        if made != promise.result_digest:
            raise RebuildError(f"{name}: the incremental {old} → {new} made {made[:12]}…")
        patch.unlink()
        return made


def wipe(folder: Path) -> None:
    """Remove a slot: its seal first, so that half a slot is never a sealed one."""
    durable.remove(folder / seals.SEAL_NAME)
    if not folder.exists():
        return
    for parent in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        if not parent.is_symlink():
            parent.chmod(0o755)
    host.remove_tree(folder)
    durable.sync_directory(folder.parent)


def _arrange(item: Component, content: Path, place: Path) -> None:
    """Give a component's content, digested when it was written, its place in the slot.

    A tree's tar is digested once more: its files are sealed as they come out of it.
    """
    if item.form is Form.TREE and clone.digest_of(content) != item.digest:
        raise TrustError(f"component {item.name}: what was put together isn't the signed content")
    place.mkdir(mode=0o755)
    if item.form is Form.FILE:
        content.replace(place / item.filename)
        return
    try:
        with content.open("rb") as tar:
            tree.unpack(tar, place, limit=item.length)
    except ManifestError as error:
        raise ManifestError(
            f"component {item.name} {item.version}: {error}; nothing was sealed, "
            "what is installed stays"
        ) from error
    content.unlink()


def _check_sealed(item: Component, seal: Seal) -> None:
    """Raises TrustError: the disk gives back another file than the one that was written to it."""
    if item.form is Form.FILE and seal.files[f"{item.name}/{item.filename}"].digest != item.digest:
        raise TrustError(f"component {item.name}: what the slot holds isn't the signed content")


def _clone(item: Component, folder: Path, copy: Path) -> None:
    """Copy a component that is to be kept to `copy`, its file under the release's name.

    A tree's files are shorter than its content, the tar.
    """
    if item.form is Form.TREE:
        clone.copy_tree(folder, copy, limit=item.length)
        return
    copy.mkdir(mode=FOLDER_MODE)
    clone.copy_file(_only_file(folder), copy / item.filename, limit=item.length)


def _content_digest(item: Component, folder: Path) -> str:
    """The digest of the content that `folder` holds: it covers names, links and modes."""
    digest = hashlib.sha256()
    with io.BufferedWriter(_Digesting(digest), incoming.CHUNK) as out:
        _read_content(folder, item, out)
    return digest.hexdigest()


def _read_content(folder: Path, item: Component, out: BinaryIO) -> None:
    if item.form is Form.TREE:
        tree.pack(folder, out)
        return
    with _only_file(folder).open("rb") as file:
        shutil.copyfileobj(file, out, incoming.CHUNK)


def _only_file(folder: Path) -> Path:
    files = [path for path in folder.iterdir() if path.is_file() and not path.is_symlink()]
    if len(files) != 1:
        raise SlotError(f"{folder} holds {len(files)} files, expected one")
    return files[0]


def _raise_if_full(error: Exception) -> None:
    """A full disk is no damage: another download wouldn't help."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        raise error


class _Base(io.BufferedReader):
    """The active slot's file. That it can't be read is no end: the full can be fetched."""

    def read(self, size: int | None = -1, /) -> bytes:
        try:
            return super().read(size)
        except OSError as error:
            raise RebuildError(f"the base can't be read ({error.strerror})") from error


class _Digesting(io.RawIOBase):
    """Takes what is written into a digest, and keeps none of it."""

    def __init__(self, digest: hashlib._Hash) -> None:
        self._digest = digest

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        self._digest.update(data)
        return memoryview(data).nbytes


def _protect(slot: Path) -> None:
    """Whatever the umask: every engine may read, nobody edits."""
    slot.chmod(FOLDER_MODE)
    for path in slot.rglob("*"):
        if path.is_symlink():
            continue
        if path.is_dir():
            path.chmod(FOLDER_MODE)
        elif path.is_file():
            path.chmod(PROGRAM_MODE if path.stat().st_mode & 0o100 else FILE_MODE)


def _payload(item: Component) -> str:
    return manifest.payload_path(item.name, item.version)
