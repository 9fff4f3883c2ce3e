"""What a mirror has, for people and the API: by component and version.

Pure: the record and what lies in the folder come in.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from feed import version
from server.mirror.record import Record
from server.mirror.signed import Part


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a component: bytes in full; of its compressed copy, 0 where there is none.

    is_here: it is served in full. increments_from: versions from which an
    increment that is here leads to it; increments_lacking: signed ones that aren't.
    """

    version: str
    full_bytes: int
    copy_bytes: int
    is_here: bool
    releases: tuple[str, ...]
    increments_from: tuple[str, ...]
    increments_lacking: tuple[str, ...]


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A component; versions newest first, those only of which something is here."""

    name: str
    versions: tuple[Version, ...]


class Offered(msgspec.Struct, frozen=True, kw_only=True):
    """A region's plan."""

    region: str
    state: str
    release: str
    fallback: str | None


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. switched_at: Unix seconds, 0 before the first switch."""

    offered: tuple[Offered, ...]
    components: tuple[Kept, ...]
    files: int
    disk_bytes: int
    switched_at: float


def contents(record: Record, here: Mapping[str, int]) -> Contents:
    """What there is. here: {where it is served: bytes}."""
    return Contents(
        offered=tuple(
            Offered(region=region, state=plan.state, release=plan.release, fallback=plan.fallback)
            for region, plan in sorted(record.plans.items())
        ),
        components=tuple(
            Kept(name=name, versions=tuple(_versions(name, part, record, here)))
            for name, part in sorted(record.catalogue.parts.items())
        ),
        files=len(here),
        disk_bytes=sum(here.values()),
        switched_at=record.switched_at,
    )


def _versions(name: str, part: Part, record: Record, here: Mapping[str, int]) -> list[Version]:
    found = []
    for payload in part.payloads:
        leading = [item for item in part.increments if item.edge.new == payload.version]
        came = [item.edge.old for item in leading if item.target.served in here]
        lacks = [item.edge.old for item in leading if item.target.served not in here]
        made = Version(
            version=payload.version,
            full_bytes=payload.target.length,
            copy_bytes=here.get(payload.target.copy, 0),
            is_here=payload.target.served in here,
            releases=_releases(name, payload.version, record),
            increments_from=_newest_first(came),
            increments_lacking=_newest_first(lacks),
        )
        if made.is_here or made.increments_from:
            found.append(made)
    return found


def _releases(name: str, which: str, record: Record) -> tuple[str, ...]:
    return tuple(
        release.id
        for release in record.releases.values()
        if any((item.name, item.version) == (name, which) for item in release.components)
    )


def _newest_first(versions: list[str]) -> tuple[str, ...]:
    return tuple(sorted(versions, key=version.parse, reverse=True))
