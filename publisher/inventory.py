"""What there is at the release desk: releases, components, roles, plans, keys."""

from __future__ import annotations

import msgspec

from feed.rollout import RolloutPlan
from publisher import staging
from publisher.catalogue import Catalogue
from publisher.home import Desk
from publisher.repository import Repository


class ReleaseLine(msgspec.Struct, frozen=True, kw_only=True):
    """A published release; components is {name: version}."""

    id: str
    sequence: int
    created: str
    components: dict[str, str]


class ComponentLine(msgspec.Struct, frozen=True, kw_only=True):
    """A component; versions newest first, increments_to_newest the versions that one leads from."""

    name: str
    versions: tuple[str, ...]
    increments_to_newest: tuple[str, ...]
    full_bytes: int


class RoleLine(msgspec.Struct, frozen=True, kw_only=True):
    """A role; keys are ids, of which `threshold` have to sign. days_left counts from now."""

    name: str
    version: int
    expires: str
    days_left: float
    due: bool
    threshold: int
    keys: tuple[str, ...]
    signable: bool


class KeyLine(msgspec.Struct, frozen=True, kw_only=True):
    """A key; roles is empty for one that no metadata names."""

    id: str
    uri: str
    roles: tuple[str, ...]
    here: bool


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    home: str
    releases: tuple[ReleaseLine, ...]
    staged: tuple[str, ...]
    components: tuple[ComponentLine, ...]
    roles: tuple[RoleLine, ...]
    rollouts: tuple[RolloutPlan, ...]


def take(desk: Desk) -> Inventory:
    """Everything `publisher show` shows."""
    catalogue = Catalogue(desk.repository, desk.home.targets)
    return Inventory(
        home=str(desk.home.path),
        releases=tuple(
            _release(catalogue, item.id, item.sequence) for item in catalogue.releases()
        ),
        staged=tuple(staging.listed(desk.home.staging)),
        components=tuple(_component(catalogue, name) for name in desk.repository.components),
        roles=tuple(_role(desk.repository, name) for name in desk.repository.names()),
        rollouts=tuple(catalogue.plans()),
    )


def keys(desk: Desk) -> list[KeyLine]:
    """Every key that is registered or that metadata names."""
    signs: dict[str, list[str]] = {entry.id: [] for entry in desk.keyring.entries}
    for role in desk.repository.names():
        for keyid in desk.repository.authority(role).keyids:
            signs.setdefault(keyid, []).append(role)
    uris = {entry.id: entry.uri for entry in desk.keyring.entries}
    return [
        KeyLine(
            id=keyid, uri=uris.get(keyid, ""), roles=tuple(roles), here=desk.keyring.is_here(keyid)
        )
        for keyid, roles in signs.items()
    ]


def _release(catalogue: Catalogue, release_id: str, sequence: int) -> ReleaseLine:
    found = catalogue.release(release_id)
    return ReleaseLine(
        id=release_id,
        sequence=sequence,
        created=found.created,
        components={item.name: item.version for item in found.components},
    )


def _component(catalogue: Catalogue, name: str) -> ComponentLine:
    payloads = catalogue.payloads(name)
    return ComponentLine(
        name=name,
        versions=tuple(item.version for item in payloads),
        increments_to_newest=catalogue.predecessors(name, payloads[0].version),
        full_bytes=payloads[0].length,
    )


def _role(repository: Repository, name: str) -> RoleLine:
    signed = repository.metadata(name).signed
    authority = repository.authority(name)
    return RoleLine(
        name=name,
        version=signed.version,
        expires=signed.expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        days_left=round((signed.expires - repository.now).total_seconds() / 86400, 2),
        due=repository.is_due(name),
        threshold=authority.threshold,
        keys=tuple(authority.keyids),
        signable=repository.can_sign(name),
    )
