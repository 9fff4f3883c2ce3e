"""The signed metadata of a feed: what timestamp.json leads to, and the one way to change it.

Load → change in memory → one `save`. Everything is signed and verified before
the first byte is written; then versioned files, and timestamp.json last, so a
process killed anywhere leaves the old feed or the new one, never a mixture. A
version that no timestamp leads to doesn't exist and is overwritten next time.

 * What is loaded has to verify; the publisher doesn't sign on top of strangers' bytes.
 * New root versions are found by clients without a timestamp. They are written
   after what they vouch for, which is then signed by the old and the new key.
   With a lost key that is impossible: root goes first, and a kill in between
   leaves a role that only the previous root knows; the next `save` signs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from feed import durable
from publisher.errors import DamageError, SigningError
from publisher.keys import Keyring
from publisher.metadata import (
    PUBLIC_MODE,
    RELEASES,
    ROLLOUT,
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    TOP_LEVEL,
    component_paths,
    newest_root,
    read,
    serialize,
)
from publisher.settings import Expiry

# A role is signed again when less than this share of its lifetime is left.
RENEW_BELOW_SHARE = 0.25

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The wall clock: expiry dates are wall time."""
    return datetime.now(UTC)


class Repository:
    """A feed's metadata, open for changes."""

    def __init__(
        self,
        folder: Path,
        roles: dict[str, Metadata[Any]],
        *,
        keyring: Keyring,
        expiry: Expiry,
        clock: Clock = utc_now,
    ) -> None:
        """folder is the feed's `metadata`; use `load` or `create`."""
        self.folder = folder
        self.keyring = keyring
        self._roles = roles
        self._expiry = expiry
        self._clock = clock
        self._touched: set[str] = set()
        self._fresh: set[str] = set()
        self._previous_root: Root | None = None

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        keyring: Keyring,
        expiry: Expiry,
        root_keys: int = 1,
        root_threshold: int = 1,
        clock: Clock = utc_now,
    ) -> Repository:
        """A new feed with new keys, nothing of it saved yet except the keys."""
        root = Root(consistent_snapshot=True)
        for role in TOP_LEVEL:
            for _ in range(root_keys if role == ROOT else 1):
                root.add_key(keyring.create(role), role)
        root.roles[ROOT].threshold = root_threshold
        roles: dict[str, Metadata[Any]] = {
            ROOT: Metadata(root),
            TARGETS: Metadata(Targets(delegations=Delegations({}, {}))),
            SNAPSHOT: Metadata(Snapshot()),
            TIMESTAMP: Metadata(Timestamp()),
        }
        self = cls(folder, roles, keyring=keyring, expiry=expiry, clock=clock)
        self._fresh |= set(roles)
        self._touched |= set(roles)
        for role in (RELEASES, ROLLOUT):
            self.delegate(role)
        return self

    @classmethod
    def load(
        cls, folder: Path, *, keyring: Keyring, expiry: Expiry, clock: Clock = utc_now
    ) -> Repository:
        """The feed that timestamp.json in `folder` leads to.

        Raises DamageError: something is missing or doesn't verify.
        """
        version = newest_root(folder)
        roles: dict[str, Metadata[Any]] = {ROOT: read(folder / f"{version}.root.json")}
        self = cls(folder, roles, keyring=keyring, expiry=expiry, clock=clock)
        if version > 1:
            self._previous_root = read(folder / f"{version - 1}.root.json").signed
        self._verify(ROOT, roles[ROOT])
        self._admit(TIMESTAMP, folder / "timestamp.json")
        self._admit(SNAPSHOT, self._file(SNAPSHOT, self.timestamp.snapshot_meta.version))
        self._admit(TARGETS, self._file(TARGETS, self._recorded(TARGETS)))
        return self

    @property
    def root(self) -> Root:
        """The newest root."""
        found: Root = self._roles[ROOT].signed
        return found

    @property
    def timestamp(self) -> Timestamp:
        """The timestamp."""
        found: Timestamp = self._roles[TIMESTAMP].signed
        return found

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot."""
        found: Snapshot = self._roles[SNAPSHOT].signed
        return found

    @property
    def delegations(self) -> dict[str, DelegatedRole]:
        """Delegated roles by name, in the order clients search them."""
        delegations = self._roles[TARGETS].signed.delegations
        return dict(delegations.roles)

    @property
    def components(self) -> list[str]:
        """Names of the components that have a role."""
        return sorted(set(self.delegations) - {RELEASES, ROLLOUT})

    @property
    def now(self) -> datetime:
        """The time that signatures are made at."""
        return self._clock()

    def names(self) -> list[str]:
        """Every role."""
        return [*TOP_LEVEL, *self.delegations]

    def metadata(self, role: str) -> Metadata[Any]:
        """A role's metadata, read and verified when first asked for."""
        if role not in self._roles:
            self._admit(role, self._file(role, self._recorded(role)))
        return self._roles[role]

    def targets(self, role: str) -> Targets:
        """What a delegated role signs now."""
        found: Targets = self.metadata(role).signed
        return found

    def authority(self, role: str) -> Role:
        """The keys and threshold that may sign `role`."""
        return self._delegator(role).get_delegated_role(role)

    def change(self, role: str) -> Any:
        """The signed part of `role`, to be changed; `save` signs it again."""
        signed = self.metadata(role).signed
        self._touched.add(role)
        return signed

    def delegate(self, role: str) -> None:
        """A new delegated role with a key of its own and no targets.

        The key that an interrupted run made for it is taken, if there is one.
        """
        key = self.keyring.made_for(role) or self.keyring.create(role)
        targets: Targets = self.change(TARGETS)
        assert targets.delegations is not None and targets.delegations.roles is not None  # noqa: S101, PT018 - `create` makes them
        targets.delegations.roles[role] = DelegatedRole(
            role, [], 1, terminating=True, paths=component_paths(role)
        )
        targets.add_key(key, role)
        self._roles[role] = Metadata(Targets())
        self._fresh.add(role)
        self._touched.add(role)

    def exchange_keys(self, role: str, *, old: Iterable[str], new: Key) -> None:
        """Let `new` sign `role` instead of `old`; `role` and its delegator are signed again."""
        self.change(role)  # read while the old key still vouches for it
        delegator = self.change(ROOT if role in TOP_LEVEL else TARGETS)
        for keyid in old:
            delegator.revoke_key(keyid, role)
        delegator.add_key(new, role)

    def due(self) -> list[str]:
        """Roles that have to be signed again."""
        return [name for name in self.names() if self.is_due(name)]

    def is_due(self, role: str) -> bool:
        """Whether less than a quarter of a role's lifetime is left."""
        lifetime = timedelta(days=self._expiry.days(role))
        left: timedelta = self.metadata(role).signed.expires - self.now
        return left < lifetime * RENEW_BELOW_SHARE

    def can_sign(self, role: str) -> bool:
        """Whether enough keys of `role` are here."""
        authority = self.authority(role)
        here = [keyid for keyid in authority.keyids if self.keyring.is_here(keyid)]
        return len(here) >= authority.threshold

    def require_keys(self) -> None:
        """Refuse now what `save` would refuse for want of keys.

        Raises SigningError.
        """
        for role in self._order():
            if not self.can_sign(role):
                threshold = self.authority(role).threshold
                raise SigningError(self._too_few(role, f"{threshold} signatures are needed"))

    def save(
        self, *, cosigners: Mapping[str, list[Signer]] | None = None, root_first: bool = False
    ) -> list[str]:
        """Sign what was changed and make it the feed. Returns the names of signed roles.

        cosigners, {role: signers}, sign besides the role's own keys.

        Raises SigningError: too few keys; nothing was written.
        """
        order = self._order()
        for role in order:
            self._renew(role)
        for role in order:
            self._sign(role, (cosigners or {}).get(role, []))
        if root_first:
            order.sort(key=lambda role: role != ROOT)
        durable.sweep_temporaries(self.folder)
        for role in order:
            durable.replace(self._target_file(role), serialize(self._roles[role]), mode=PUBLIC_MODE)
        self._touched.clear()
        self._fresh.clear()
        return order

    def _order(self) -> list[str]:
        """Changed roles, each after what it refers to; root last."""
        if self._touched - {ROOT, SNAPSHOT, TIMESTAMP}:
            self._touched.add(SNAPSHOT)
        if SNAPSHOT in self._touched:
            self._touched.add(TIMESTAMP)
        rank = {TARGETS: 1, SNAPSHOT: 2, TIMESTAMP: 3, ROOT: 4}
        return sorted(self._touched, key=lambda role: (rank.get(role, 0), role))

    def _renew(self, role: str) -> None:
        signed = self._roles[role].signed
        if role not in self._fresh:
            signed.version += 1
        signed.expires = self.now + timedelta(days=self._expiry.days(role))
        if role not in TOP_LEVEL or role == TARGETS:
            self.snapshot.meta[f"{role}.json"] = MetaFile(signed.version)
        if role == SNAPSHOT:
            self.timestamp.snapshot_meta = MetaFile(signed.version)

    def _sign(self, role: str, cosigners: list[Signer]) -> None:
        metadata = self._roles[role]
        metadata.signatures.clear()
        signers = self.keyring.present(self.authority(role).keyids)
        for signer in [*signers, *cosigners]:
            metadata.sign(signer, append=True)
        try:
            self._verify(role, metadata)
            if role == ROOT and role not in self._fresh:
                trusted = read(self._file(ROOT, metadata.signed.version - 1)).signed
                trusted.verify_delegate(ROOT, metadata.signed_bytes, metadata.signatures)
        except UnsignedMetadataError as error:
            raise SigningError(self._too_few(role, str(error).removeprefix(f"{role} "))) from error

    def _too_few(self, role: str, problem: str) -> str:
        where = self.keyring.whereabouts(self.authority(role).keyids)
        return (
            f"{role}: {problem}; its keys are {where}. Nothing was published; bring them back "
            f"and run again, or replace a lost one with `publisher keys rotate {role} --lost`"
        )

    def _verify(self, role: str, metadata: Metadata[Any], *, by: Root | None = None) -> None:
        delegator = by or self._delegator(role)
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)

    def _admit(self, role: str, path: Path) -> None:
        metadata = read(path)
        self._roles[role] = metadata
        try:
            self._verify(role, metadata)
        except UnsignedMetadataError as error:
            if role in TOP_LEVEL and self._is_vouched_before(role, metadata):
                self._touched.add(role)  # the next `save` ends the interrupted exchange of keys
                return
            raise DamageError(
                f"{path}: {error}; the publisher doesn't sign on top of it. Restore the feed "
                "folder from its copy"
            ) from error

    def _is_vouched_before(self, role: str, metadata: Metadata[Any]) -> bool:
        if self._previous_root is None:
            return False
        try:
            self._verify(role, metadata, by=self._previous_root)
        except UnsignedMetadataError:
            return False
        return True

    def _delegator(self, role: str) -> Root | Targets:
        return self.root if role in TOP_LEVEL else self._roles[TARGETS].signed

    def _recorded(self, role: str) -> int:
        entry = self.snapshot.meta.get(f"{role}.json")
        if entry is None:
            raise DamageError(f"{self.folder}: the snapshot has no role {role!r}")
        return entry.version

    def _file(self, role: str, version: int) -> Path:
        return self.folder / f"{version}.{role}.json"

    def _target_file(self, role: str) -> Path:
        if role == TIMESTAMP:
            return self.folder / "timestamp.json"
        return self._file(role, self._roles[role].signed.version)
