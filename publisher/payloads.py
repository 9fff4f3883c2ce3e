"""A component's payload: the bytes that its version is, from a file or a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from feed import manifest, tree
from feed.manifest import Component, Form, Payload
from publisher.catalogue import digest_file
from publisher.settings import ComponentInput
from publisher.staging import StagedTarget

READ_CHUNK = 1 << 20


def build(item: ComponentInput, content: Path, *, where: str) -> Component:
    """Write the payload of `item` to `content`. where names the release in errors.

    Raises ManifestError: a folder holds what no agent would unpack. OSError.
    """
    source = Path(item.path)
    is_tree = source.is_dir()
    digest = _packed(source, content) if is_tree else _copied(source, content)
    component = Component(
        name=item.name,
        kind=item.kind,
        version=item.version,
        form=Form.TREE if is_tree else Form.FILE,
        filename="" if is_tree else item.filename or source.name,
        length=content.stat().st_size,
        digest=digest,
    )
    manifest.check_component(component, where=where)
    return component


def target(component: Component, *, compressed_length: int | None = None) -> StagedTarget:
    """What is signed of a payload; compressed_length is that of the copy beside it, in bytes."""
    custom = None
    if compressed_length is not None:
        custom = msgspec.to_builtins(Payload(compressed_length=compressed_length))
    return StagedTarget(
        role=component.name,
        path=manifest.payload_path(component.name, component.version),
        length=component.length,
        sha256=component.digest,
        custom=custom,
    )


def _packed(folder: Path, content: Path) -> str:
    with content.open("wb") as out:
        tree.pack(folder, out)
    return digest_file(content)


def _copied(source: Path, content: Path) -> str:
    """Copy a file; returns the SHA-256 of the bytes that were copied."""
    digest = hashlib.sha256()
    with source.open("rb") as taken, content.open("wb") as sink:
        while chunk := taken.read(READ_CHUNK):
            digest.update(chunk)
            sink.write(chunk)
    return digest.hexdigest()
