"""Replace a role's key: the one road back from a lost or stolen key.

The new key enters the metadata that names the role's keys (root for top-level
roles, targets for delegated ones), the old one leaves it, and what the old one
signed is signed again. Clients follow by themselves, from whichever root they
trust: root versions are a chain, each signed by the one before.

With `lost`, the old key isn't asked for. Without it, the switch has no gap:
until the new root is found, both keys' signatures are on what they vouch for.
"""

from __future__ import annotations

import msgspec
from securesystemslib.signer import Signer

from publisher.errors import RefusedError, SigningError
from publisher.home import Desk
from publisher.metadata import ROOT, TOP_LEVEL
from publisher.repository import Repository


class Rotated(msgspec.Struct, frozen=True, kw_only=True):
    """What a rotation did. deleted says whether the old private file was ours to delete."""

    role: str
    old: str
    new: str
    signed: tuple[str, ...]
    deleted: bool


def rotate(
    desk: Desk,
    role: str,
    *,
    lost: bool = False,
    keyid: str | None = None,
    uri: str | None = None,
    public_pem: bytes | None = None,
) -> Rotated:
    """Give `role` a new key in place of the one whose id starts with `keyid`.

    keyid may be None for a role with one key. uri and public_pem bring a key
    that lives in a KMS or HSM; without them a new file is made.

    Raises RefusedError: no such role or key. SigningError: too few signatures
    can be made; the feed is as it was. OSError.
    """
    repository = desk.repository
    if role not in repository.names():
        raise RefusedError(f"there is no role {role!r}; they are {', '.join(repository.names())}")
    old = _choose(repository, role, keyid)
    if not lost and not desk.keyring.is_here(old):
        raise SigningError(
            f"{role}'s key {desk.keyring.whereabouts([old])} isn't here; bring it back, or add "
            "--lost if it is gone for good"
        )
    cosigners = _cosigners(repository, role, old, lost=lost)
    _require_root(repository, role, old, lost=lost)
    if uri is not None:
        new = desk.keyring.adopt(role, uri=uri, public_pem=public_pem or b"")
    else:
        new = desk.keyring.create(role)
    repository.exchange_keys(role, old=[old], new=new)
    signed = repository.save(cosigners=cosigners, root_first=lost)
    deleted = desk.keyring.is_here(old)
    desk.keyring.forget(old)
    return Rotated(role=role, old=old, new=new.keyid, signed=tuple(signed), deleted=deleted)


def _choose(repository: Repository, role: str, keyid: str | None) -> str:
    keyids = repository.authority(role).keyids
    found = [item for item in keyids if item.startswith(keyid or "")]
    if len(found) != 1:
        raise RefusedError(
            f"{role} is signed by {', '.join(item[:12] for item in keyids)}; name one of them "
            "with --key"
        )
    return found[0]


def _cosigners(
    repository: Repository, role: str, old: str, *, lost: bool
) -> dict[str, list[Signer]]:
    """The old key's part: root has to be signed by it too, and the others may be."""
    if lost or role not in TOP_LEVEL:
        return {}
    return {role: repository.keyring.present([old])}


def _require_root(repository: Repository, role: str, old: str, *, lost: bool) -> None:
    """Refuse before a key is made, if the delegating role couldn't be signed."""
    delegator = ROOT if role in TOP_LEVEL else "targets"
    authority = repository.authority(delegator)
    gone = {old} if lost else set()
    here = [item for item in authority.keyids if repository.keyring.is_here(item)]
    if len(set(here) - gone) >= authority.threshold:
        return
    where = repository.keyring.whereabouts([item for item in authority.keyids if item not in gone])
    hint = (
        "bring the missing keys back and run again"
        if where
        else "without it no client can follow; a new root has to reach them by hand"
    )
    raise SigningError(
        f"{delegator} needs {authority.threshold} signatures of its present keys "
        f"({where or 'none are left'}); {hint}"
    )
