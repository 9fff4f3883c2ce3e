"""A vendor that signs whatever it is given: releases that no release desk would build."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from feed import manifest
from publisher.metadata import RELEASES
from publisher.staging import StagedTarget
from tests.support.vendor import Vendor


def sign(
    vendor: Vendor, role: str, path: str, data: bytes, custom: dict[str, str | int] | None = None
) -> Path:
    """Let `role` sign `data` as target `path`; returns where the feed has it."""
    digest = hashlib.sha256(data).hexdigest()
    staged = StagedTarget(role=role, path=path, length=len(data), sha256=digest, custom=custom)
    target = staged.as_target()
    place = vendor.feed / "targets" / target.get_prefixed_paths()[0]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    with vendor.desk() as desk:
        if role not in desk.repository.delegations:
            desk.repository.delegate(role)
        desk.repository.change(role).targets[path] = target
        desk.repository.save()
    return place


def manifest_of(vendor: Vendor, release_id: str) -> dict[str, Any]:
    """A published manifest as JSON, to be changed."""
    (path,) = (vendor.feed / "targets" / "releases").glob(f"*.{release_id}.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def ship_manifest(vendor: Vendor, document: dict[str, Any]) -> None:
    """Sign a manifest without looking at it, and offer it to everybody."""
    data = json.dumps(document).encode()
    path = manifest.release_path(document["id"])
    sign(vendor, RELEASES, path, data, {"sequence": 99})
    vendor.offer(document["id"])


def ship_tree(vendor: Vendor, release_id: str, tar: bytes, *, based_on: str) -> None:
    """Add a component scan-engine, a tree with this tar as content, to release `based_on`."""
    sign(vendor, "scan-engine", manifest.payload_path("scan-engine", "9.1"), tar)
    document = manifest_of(vendor, based_on) | {"id": release_id}
    document["components"].append(
        {
            "name": "scan-engine",
            "kind": "engine",
            "version": "9.1",
            "form": "tree",
            "filename": "",
            "length": len(tar),
            "digest": hashlib.sha256(tar).hexdigest(),
        }
    )
    ship_manifest(vendor, document)


def tar_of(*members: tarfile.TarInfo) -> bytes:
    """A tar of `members`; a regular file holds as many `x` as its size says."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size) if member.isreg() else None)
    return out.getvalue()


def member(name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """An entry of a tar."""
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, link
    found.size = 8 if kind == tarfile.REGTYPE else 0
    return found
