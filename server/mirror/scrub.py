"""Hold every served file against what is signed, and take away what has rotted.

A target's digest is in its name and in the signed metadata; a compressed copy
is judged by what it decodes to; metadata by its digest when it was verified,
and put back from the mirror's own copy at once. Fulls, increments and copies
are brought back by the next sync: refetched or rebuilt.

 * What was served under the previous snapshot is checked, and stays.
 * What nobody signs any more goes.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from feed import decompress, durable
from feed.errors import RebuildError
from feed.manifest import COMPONENT_BYTES_MAX
from server.mirror.record import Record
from server.mirror.roots import ROOT
from server.mirror.served import METADATA, PUBLIC_MODE, TARGETS, UNREADABLE, Served, is_intact
from server.mirror.supply import Progress, Tell

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_PREFIXED = re.compile(r"([0-9a-f]{64})\..+")
_log = structlog.get_logger()


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """A file that isn't as signed: its path below the feed's folder, and its bytes.

    restored: it is as signed again already; else the next sync brings it back.
    """

    path: str
    length: int
    restored: bool = False


class Scrubbed(msgspec.Struct, frozen=True, kw_only=True):
    """What a scrub read and found. unsigned: files that nobody signs, deleted."""

    files: int
    read_bytes: int
    damaged: tuple[Damage, ...] = ()
    unsigned: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """For people."""
        text = f"{self.files:,} files, {self.read_bytes:,} bytes are as signed"
        if self.damaged:
            names = ", ".join(f"{item.path} ({item.length:,} bytes)" for item in self.damaged[:5])
            more = f" and {len(self.damaged) - 5} more" if len(self.damaged) > 5 else ""
            text = f"{len(self.damaged)} of {self.files:,} files were damaged: {names}{more}"
        if self.unsigned:
            text += f"; {len(self.unsigned)} that nobody signs were deleted"
        return text


class Scrubber:
    """One pass over the served folder. Damaged files go to `aside`, until the next pass."""

    def __init__(
        self, served: Served, record: Record, *, trust: Path, aside: Path, tell: Tell
    ) -> None:
        self._served = served
        self._record = record
        self._aside = aside
        self._tell = tell
        self._trust = trust
        self._digests = {item.served: item.digest for item in record.catalogue.targets()}
        self._copies = {
            payload.target.copy: payload.target
            for part in record.catalogue.parts.values()
            for payload in part.payloads
        }

    def run(self) -> Scrubbed:
        """Read everything. Raises OSError: the folder can't be used."""
        shutil.rmtree(self._aside, ignore_errors=True)
        foreign = self._served.prepare()
        files = dict(self._files())
        total, done = sum(files.values()), 0
        damaged, unsigned = [], list(foreign)
        for name, length in files.items():
            if self._is_nobodys(name):
                durable.remove(self._served.folder / name)
                unsigned.append(self._served.told(self._served.folder / name))
            elif not self._is_sound(name):
                restored = self._take_away(name)
                damaged.append(Damage(path=name, length=length, restored=restored))
            done += length
            self._tell(Progress(done=done, total=total, what=name))
        return Scrubbed(
            files=len(files), read_bytes=done, damaged=tuple(damaged), unsigned=tuple(unsigned)
        )

    def _files(self) -> Iterator[tuple[str, int]]:
        for name, path in self._served.metadata_files().items():
            yield f"{METADATA}/{name}", path.lstat().st_size
        for served, length in self._served.files().items():
            yield f"{TARGETS}/{served}", length

    def _is_nobodys(self, name: str) -> bool:
        """Whether nothing signed leads there. Without a record nothing can be said."""
        folder, _, rest = name.partition("/")
        if not self._record.snapshot or name in self._record.previous:
            return False
        if folder == METADATA:
            return rest not in self._record.metadata and not ROOT.fullmatch(rest)
        return rest not in self._digests and rest not in self._copies

    def _is_sound(self, name: str) -> bool:
        folder, _, rest = name.partition("/")
        path = self._served.folder / name
        if folder == METADATA:
            digest = self._record.metadata.get(rest)
            return digest is None or is_intact(path, digest)
        base = rest.removesuffix(".zst")
        if rest in self._copies or (rest != base and rest not in self._digests):
            target = self._copies.get(rest)
            limit = target.length if target else COMPONENT_BYTES_MAX
            return _decodes(path, base, limit=limit)
        digest = self._digests.get(rest) or _digest_in(rest)
        return digest is None or is_intact(path, digest)

    def _take_away(self, name: str) -> bool:
        """Move a damaged file aside; whether it is as signed again."""
        path = self._served.folder / name
        _log.warning("file_damaged", path=str(path))
        folder, _, rest = name.partition("/")
        spare = self._spare(rest) if folder == METADATA else None
        if spare is not None:
            durable.replace(path, spare, mode=PUBLIC_MODE)
            return True
        self._aside.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            durable.rename(path, self._aside / name.replace("/", "_")[-200:])
        except OSError:
            durable.remove(path)  # another file system, or a name too many
        return False

    def _spare(self, name: str) -> bytes | None:
        """The mirror's own copy of a metadata file, as it was verified."""
        wanted = self._record.metadata.get(name)
        for path in (*self._trust.glob("*.json"), *self._trust.glob("root_history/*.json")):
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() == wanted:
                return data
        return None


def _digest_in(served: str) -> str | None:
    """The digest that a served file is named after."""
    found = _PREFIXED.fullmatch(served.rpartition("/")[2])
    return found[1] if found else None


def _decodes(path: Path, full: str, *, limit: int) -> bool:
    """Whether a compressed copy gives the content that `full` is named after."""
    with io.BufferedWriter(_Nowhere()) as out:
        try:
            with path.open("rb") as packed:
                return decompress.decode(packed, out, limit=limit) == _digest_in(full)
        except RebuildError:
            return False
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            return False


class _Nowhere(io.RawIOBase):
    """Takes what is written."""

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        return memoryview(data).nbytes
