"""What a feed's roles sign, sorted by what it is: the mirror's table of contents.

Pure. Targets of kinds that this version doesn't know are part of the feed all
the same, and are mirrored whole.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from feed import manifest, version
from feed.errors import ManifestError, TrustError
from feed.manifest import Component
from feed.roads import Edge

_DIGEST = re.compile(r"[0-9a-f]{64}")
_RELEASE = re.compile(r"releases/([^/]+)\.json")
_PLAN = re.compile(r"rollout/([^/]+)\.json")
_FULL = re.compile(r"components/([^/]+)/([^/]+)/full")
_INCREMENT = re.compile(r"components/([^/]+)/([^/]+)/from-([^/]+)\.delta")


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A signed file: its target path, bytes, and lowercase hex SHA-256."""

    path: str
    length: int
    digest: str

    @property
    def served(self) -> str:
        """Where a feed's targets folder has it: named after its digest."""
        folder, slash, name = self.path.rpartition("/")
        return f"{folder}{slash}{self.digest}.{name}"

    @property
    def copy(self) -> str:
        """Where a feed's targets folder has its compressed copy."""
        return f"{self.served}.zst"


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a component in full. compressed_length: see feed.manifest.Payload."""

    target: Target
    version: str
    compressed_length: int | None

    @property
    def road_bytes(self) -> int:
        """What it costs on the road."""
        return min(self.target.length, self.compressed_length or self.target.length)


class Increment(msgspec.Struct, frozen=True, kw_only=True):
    """An incremental, and what it makes of what; format names the codec."""

    target: Target
    edge: Edge
    format: str


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """All of one component."""

    payloads: tuple[Payload, ...] = ()
    increments: tuple[Increment, ...] = ()

    def payload(self, which: str) -> Payload | None:
        """The full of that version, None if nobody signs one."""
        return next((item for item in self.payloads if item.version == which), None)

    def increment(self, edge: Edge) -> Increment:
        """The incremental behind an edge of this component."""
        key = edge.old, edge.new
        return next(item for item in self.increments if (item.edge.old, item.edge.new) == key)

    @property
    def edges(self) -> tuple[Edge, ...]:
        """Its incrementals, as feed.plan wants them."""
        return tuple(item.edge for item in self.increments)


class Catalogue(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is signed: by component, by release id, by region, and the rest."""

    parts: dict[str, Part] = {}
    releases: dict[str, Target] = {}
    plans: dict[str, Target] = {}
    others: tuple[Target, ...] = ()

    def targets(self) -> Iterator[Target]:
        """All of it."""
        yield from self.plans.values()
        yield from self.releases.values()
        yield from self.others
        for part in self.parts.values():
            yield from (item.target for item in part.payloads)
            yield from (item.target for item in part.increments)

    def payload(self, component: Component, *, release: str) -> Payload:
        """The signed full of a release's component.

        Raises ManifestError: it isn't signed, or other bytes are.
        """
        part = self.parts.get(component.name, Part())
        found = part.payload(component.version)
        where = f"release {release}: component {component.name} {component.version}"
        if found is None:
            raise ManifestError(f"{where} isn't signed by anybody who may sign it")
        if (found.target.digest, found.target.length) != (component.digest, component.length):
            raise ManifestError(
                f"{where}: {found.target.length:,} bytes with SHA-256 {found.target.digest[:12]}… "
                f"are signed, the release says {component.length:,} with {component.digest[:12]}…"
            )
        return found


def sort(found: Iterable[tuple[str, int, str | None, Any]]) -> Catalogue:
    """The catalogue of (path, length, SHA-256, custom) of every signed target.

    An incremental that doesn't say what it makes is nobody's road: left out.
    Raises TrustError: a target without a SHA-256.
    """
    parts: dict[str, tuple[list[Payload], list[Increment]]] = {}
    releases: dict[str, Target] = {}
    plans: dict[str, Target] = {}
    others: list[Target] = []
    for path, length, digest, custom in found:
        if digest is None or not _DIGEST.fullmatch(digest):
            raise TrustError(f"target {path}: signed without a SHA-256 digest; not mirrored")
        target = Target(path=path, length=length, digest=digest)
        if match := _RELEASE.fullmatch(path):
            releases[match[1]] = target
        elif match := _PLAN.fullmatch(path):
            plans[match[1]] = target
        elif (match := _FULL.fullmatch(path)) and _is_component(match[1], match[2]):
            parts.setdefault(match[1], ([], []))[0].append(_payload(target, match[2], custom))
        elif (match := _INCREMENT.fullmatch(path)) and _is_component(match[1], match[2], match[3]):
            with contextlib.suppress(ManifestError):
                made = _increment(target, old=match[3], new=match[2], custom=custom)
                parts.setdefault(match[1], ([], []))[1].append(made)
        else:
            others.append(target)
    return Catalogue(
        parts={
            name: Part(payloads=tuple(_newest_first(fulls)), increments=tuple(increments))
            for name, (fulls, increments) in parts.items()
        },
        releases=releases,
        plans=plans,
        others=tuple(others),
    )


def _is_component(name: str, *versions: str) -> bool:
    try:
        for text in versions:
            version.parse(text)
    except ManifestError:
        return False
    return manifest.is_component_name(name)


def _newest_first(payloads: list[Payload]) -> list[Payload]:
    return sorted(payloads, key=lambda item: version.parse(item.version), reverse=True)


def _payload(target: Target, which: str, custom: Any) -> Payload:
    hint = manifest.parse_payload(custom).compressed_length
    return Payload(target=target, version=which, compressed_length=hint)


def _increment(target: Target, *, old: str, new: str, custom: Any) -> Increment:
    promise = manifest.parse_increment(custom, path=target.path)
    edge = Edge(
        old=old,
        new=new,
        length=target.length,
        base_digest=promise.base_digest,
        result_digest=promise.result_digest,
        result_length=promise.result_length,
    )
    return Increment(target=target, edge=edge, format=promise.format)
