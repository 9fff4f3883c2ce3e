"""A slot's seal: `release.json`, which says exactly what the slot holds.

The stager writes it last, durably, so a slot with a valid seal is complete.
The seal names every file with size, mode and digest; verifying a slot means
walking it and finding nothing missing, altered or added.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent.errors import SlotError
from agent.slots.record import SlotContent
from feed import durable
from feed.manifest import Activation, Component, HealthPolicy, content_digest

SEAL_NAME = "release.json"
SCHEMA = 1
SEAL_BYTES_MAX = 64 << 20
READ_CHUNK = 1 << 20


class SealedFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry of a slot: a regular file, or a link when `link` is set.

    digest is lowercase hex SHA-256, size bytes, mode the permission bits.
    """

    digest: str = ""
    size: int = 0
    mode: int = 0o644
    link: str | None = None


class Seal(msgspec.Struct, frozen=True, kw_only=True):
    """What a slot holds. files is keyed by path relative to the slot, with '/'."""

    schema: int
    release: str
    components: tuple[Component, ...]
    activation: Activation
    health: HealthPolicy
    files: dict[str, SealedFile]

    @property
    def digest(self) -> str:
        """The release's content digest (feed.manifest.content_digest)."""
        return content_digest(self.contents)

    @property
    def contents(self) -> dict[str, str]:
        """{component: content digest}"""
        return {item.name: item.digest for item in self.components}


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """One difference between a slot and its seal."""

    path: str
    component: str
    problem: str


def write(slot: Path, seal: Seal) -> SlotContent:
    """Seal `slot`; its files are already durable. Returns what the boot record keeps."""
    data = msgspec.json.encode(seal, order="deterministic")
    durable.replace(slot / SEAL_NAME, data, mode=0o444)
    return SlotContent(
        release=seal.release, digest=seal.digest, seal=hashlib.sha256(data).hexdigest()
    )


def read(slot: Path) -> tuple[Seal, SlotContent]:
    """The seal of `slot` and the boot record's view of it.

    Raises SlotError: no seal, one that doesn't parse, or that names files elsewhere.
    """
    path = slot / SEAL_NAME
    try:
        with path.open("rb") as file:
            data = file.read(SEAL_BYTES_MAX + 1)
        if len(data) > SEAL_BYTES_MAX:
            raise SlotError(f"{path}: over {SEAL_BYTES_MAX:,} bytes")
        seal = msgspec.json.decode(data, type=Seal)
    except FileNotFoundError as error:
        raise SlotError(f"slot {slot.name} is not sealed ({path} is missing)") from error
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SlotError(f"slot {slot.name}: the seal {path} can't be read: {error}") from error
    if seal.schema != SCHEMA:
        raise SlotError(f"{path}: schema {seal.schema}, this version reads {SCHEMA}")
    for name in seal.files:
        if not all(part.strip(".") for part in name.split("/")):
            raise SlotError(f"{path}: {name[:200]!r} is no path inside the slot")
    content = SlotContent(
        release=seal.release, digest=seal.digest, seal=hashlib.sha256(data).hexdigest()
    )
    return seal, content


def scan(folder: Path, *, prefix: str = "") -> dict[str, SealedFile]:
    """Every file and link below `folder`, read and digested.

    Raises SlotError: something that is neither file, folder nor link.
    """
    return {f"{prefix}{path}": describe(folder / path) for path in _walk(folder)}


def describe(path: Path) -> SealedFile:
    """What a seal says about `path`, read from the disk.

    Raises SlotError: neither a file nor a link. OSError: unreadable.
    """
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return SealedFile(link=str(path.readlink()))
    if not stat.S_ISREG(status.st_mode):
        raise SlotError(f"{path} is neither a file nor a link")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(READ_CHUNK):
            digest.update(chunk)
    mode = stat.S_IMODE(status.st_mode)
    return SealedFile(digest=digest.hexdigest(), size=status.st_size, mode=mode)


def verify(slot: Path, seal: Seal) -> list[Damage]:
    """Every difference between the disk and the seal; empty when the slot is intact."""
    found = [*_differences(slot, seal)]
    present = set(_walk(slot)) - {SEAL_NAME}
    found += [
        Damage(path=path, component=_component(path), problem="is not part of the release")
        for path in sorted(present - set(seal.files))
        if not path.startswith(f"{durable.TEMP_PREFIX}{SEAL_NAME}.")  # write() was interrupted
    ]
    return found


def _differences(slot: Path, seal: Seal) -> Iterator[Damage]:
    for path, expected in sorted(seal.files.items()):
        problem = _difference(slot / path, expected)
        if problem:
            yield Damage(path=path, component=_component(path), problem=problem)


def _difference(path: Path, expected: SealedFile) -> str | None:
    try:
        found = describe(path)
    except FileNotFoundError:
        return "is missing"
    except (OSError, SlotError) as error:
        return f"can't be read: {error}"
    if found == expected:
        return None
    if found.link != expected.link:
        return f"links to {found.link}, the seal says {expected.link}"
    if found.size != expected.size:
        return f"is {found.size:,} bytes, the seal says {expected.size:,}"
    if found.digest != expected.digest:
        return f"has digest {found.digest[:12]}…, the seal says {expected.digest[:12]}…"
    return f"has mode {found.mode:o}, the seal says {expected.mode:o}"


def _component(path: str) -> str:
    return path.split("/", 1)[0]


def _walk(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in (*files, *links):
            yield Path(parent, name).relative_to(folder).as_posix()
