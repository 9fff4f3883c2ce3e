"""Publish what is prepared, and sign again what is about to expire.

Files go first, then metadata, timestamp.json last (publisher.repository).
"""

from __future__ import annotations

import msgspec

from publisher import staging
from publisher.catalogue import Catalogue
from publisher.errors import RefusedError
from publisher.home import Desk, locked
from publisher.metadata import RELEASES, TIMESTAMP
from publisher.staging import Staged


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did. release is None for a heartbeat; warnings name what will expire."""

    release: str | None
    signed: tuple[str, ...]
    warnings: tuple[str, ...]


def publish(desk: Desk, release_id: str | None = None) -> Published:
    """Publish the prepared release `release_id` (None: the only one), or refresh the feed.

    Raises RefusedError: not prepared, or prepared against an older feed.
    SigningError: a needed key isn't here; the feed is as it was. HomeError: a
    release is being prepared. DamageError. OSError.
    """
    folder = desk.home.staging
    with locked(desk.home.staging_lock, doing="preparing a release"):
        staging.sweep(folder)
        staged = staging.choose(folder, release_id)
        if staged is None:
            return refresh(desk)
        done = _publish(desk, staged)
        staging.remove(folder, staged.release.id)
        return done


def refresh(desk: Desk) -> Published:
    """The heartbeat: a fresh timestamp, and whatever else expires soon. Releases nothing.

    Raises SigningError: the timestamp's key isn't here. DamageError. OSError.
    """
    warnings = _renew(desk)
    desk.repository.change(TIMESTAMP)
    signed = desk.repository.save()
    return Published(release=None, signed=tuple(signed), warnings=tuple(warnings))


def _publish(desk: Desk, staged: Staged) -> Published:
    catalogue = Catalogue(desk.repository, desk.home.targets)
    if _is_out(catalogue, staged):
        return msgspec.structs.replace(refresh(desk), release=staged.release.id)
    _enter(desk, catalogue, staged)
    warnings = _renew(desk)
    desk.repository.require_keys()
    staging.place(desk.home.staging, staged, desk.home.targets)
    signed = desk.repository.save()
    return Published(release=staged.release.id, signed=tuple(signed), warnings=tuple(warnings))


def _is_out(catalogue: Catalogue, staged: Staged) -> bool:
    """Whether an earlier run was killed after the feed had already switched."""
    listed = {item.id for item in catalogue.releases()}
    return staged.release.id in listed and catalogue.release(staged.release.id) == staged.release


def _enter(desk: Desk, catalogue: Catalogue, staged: Staged) -> None:
    repository = desk.repository
    if staged.based_on != repository.targets(RELEASES).version:
        raise RefusedError(
            f"release {staged.release.id} was prepared before the newest release came out; "
            f"prepare it again with `publisher release {staged.release.id} …`"
        )
    for target in staged.targets:
        if target.role != RELEASES and target.role not in repository.delegations:
            repository.delegate(target.role)
        repository.change(target.role).targets[target.path] = target.as_target()
    for role in {target.role for target in staged.targets} - {RELEASES}:
        _drop_old_increments(desk, catalogue, role)


def _drop_old_increments(desk: Desk, catalogue: Catalogue, name: str) -> None:
    """Unlist incrementals outside the newest version and the 14 before it."""
    reach = desk.settings.incrementals_kept + 1
    window = {item.version for item in catalogue.payloads(name)[:reach]}
    targets = desk.repository.change(name).targets
    for old, new, target in catalogue.increments(name):
        if not {old, new} <= window:
            del targets[target.path]


def _renew(desk: Desk) -> list[str]:
    """Mark what expires soon to be signed again; say what can't be."""
    repository = desk.repository
    warnings = []
    for role in repository.due():
        if repository.can_sign(role):
            repository.change(role)
        else:
            left = repository.metadata(role).signed.expires - repository.now
            warnings.append(
                f"{role} expires in {left.days} days and its key isn't here: bring back "
                f"{repository.keyring.whereabouts(repository.authority(role).keyids)} "
                "and run `publisher publish`"
            )
    return warnings
