"""A real TUF repository on disk that signs for real, and lies when told to.

    repo = TufRepo(folder)
    repo.delegate("releases", ["releases/*.json"])
    repo.add_target("releases/1.json", b"{}", role="releases")
    repo.publish()
    TrustedFeed(state, repo.metadata_url, repo.targets_url, repo.trusted_root, transport)

<folder>/metadata and <folder>/targets, laid out as a server serves them.
Versions count up at each `publish`; files of earlier versions stay, as on a
real mirror. Everything is public to tests: change the objects in `roles`,
`keys` or the files, then `publish`, `sign` or `write` what the attack needs.
"""

from __future__ import annotations

import copy
import datetime
import hashlib
import urllib.parse
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)

from feed.zstd import ZstdCompressor

TOP_LEVEL = ("root", "targets", "snapshot", "timestamp")


class TufRepo:
    """A repository; consistent=False leaves versions and digests out of the names.

    hashes=True lists lengths and digests of metadata too. keys: how many
    ed25519 keys each top-level role has; the threshold is all of them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        consistent: bool = True,
        hashes: bool = False,
        keys: int = 1,
        lifetime: datetime.timedelta = datetime.timedelta(days=30),
        now: datetime.datetime | None = None,
    ) -> None:
        self.folder = folder
        self.consistent = consistent
        self.hashes = hashes
        self.lifetime = lifetime
        self.root_lifetime = 12 * lifetime
        self.now = now
        self.keys: dict[str, list[CryptoSigner]] = {}
        self.changed: set[str] = set()
        (folder / "metadata").mkdir(parents=True)
        (folder / "targets").mkdir()
        root = Root(expires=self.expiry, consistent_snapshot=consistent)
        self.roles: dict[str, Metadata[Any]] = {
            "root": Metadata(root),
            "targets": Metadata(Targets(expires=self.expiry)),
            "snapshot": Metadata(Snapshot(expires=self.expiry)),
            "timestamp": Metadata(Timestamp(expires=self.expiry)),
        }
        for role in TOP_LEVEL:
            self.roles[role].signed.version = 0  # publishing counts up
            self.keys[role] = [CryptoSigner.generate_ed25519() for _ in range(keys)]
            for signer in self.keys[role]:
                root.add_key(signer.public_key, role)
            root.roles[role].threshold = keys
        self.changed.add("targets")
        self.publish_root()
        self.trusted_root = self.path_of("root").read_bytes()
        self.publish()

    @property
    def expiry(self) -> datetime.datetime:
        """What a role signed now gets."""
        return self._after(self.lifetime)

    def _after(self, lifetime: datetime.timedelta) -> datetime.datetime:
        now = self.now or datetime.datetime.now(datetime.UTC)
        return (now + lifetime).replace(microsecond=0)  # whole seconds, as TUF wants

    @property
    def metadata_url(self) -> str:
        """The metadata as a file URL."""
        return (self.folder / "metadata").as_uri() + "/"

    @property
    def targets_url(self) -> str:
        """The targets as a file URL."""
        return (self.folder / "targets").as_uri() + "/"

    @property
    def root(self) -> Root:
        """The newest root, to change before `publish_root`."""
        signed: Root = self.roles["root"].signed
        return signed

    def targets(self, role: str = "targets") -> Targets:
        """A targets role's content, to change before `publish`; marks it changed."""
        self.changed.add(role)
        signed: Targets = self.roles[role].signed
        return signed

    def delegate(
        self,
        name: str,
        paths: list[str],
        *,
        parent: str = "targets",
        terminating: bool = True,
        signers: list[CryptoSigner] | None = None,
        threshold: int = 1,
    ) -> None:
        """Let `parent` delegate `paths` to the new role `name`."""
        self.keys[name] = signers or [CryptoSigner.generate_ed25519() for _ in range(threshold)]
        keyids = [signer.public_key.keyid for signer in self.keys[name]]
        role = DelegatedRole(name, keyids, threshold, terminating, paths)
        content = self.targets(parent)
        if content.delegations is None:
            content.delegations = Delegations({}, {})
        for signer in self.keys[name]:
            content.delegations.keys[signer.public_key.keyid] = signer.public_key
        assert content.delegations.roles is not None
        content.delegations.roles[name] = role
        self._new_targets(name)

    def delegate_bins(self, prefix: str, *, bit_length: int) -> None:
        """Let targets delegate everything to 2**bit_length hash bins."""
        signer = CryptoSigner.generate_ed25519()
        keyid = signer.public_key.keyid
        bins = SuccinctRoles([keyid], 1, bit_length, prefix)
        self.targets().delegations = Delegations({keyid: signer.public_key}, succinct_roles=bins)
        for name in bins.get_roles():
            self.keys[name] = [signer]
            self._new_targets(name)

    def _new_targets(self, name: str) -> None:
        self.roles[name] = Metadata(Targets(expires=self.expiry))
        self.roles[name].signed.version = 0
        self.changed.add(name)

    def add_target(
        self,
        path: str,
        content: bytes,
        *,
        role: str = "targets",
        custom: dict[str, Any] | None = None,
        compressed: bool = False,
    ) -> TargetFile:
        """Put `content` on the server and into `role`; publish afterwards.

        compressed adds the unsigned `.zst` beside it.
        """
        target = TargetFile.from_data(path, content, ["sha256"])
        if custom is not None:
            target.unrecognized_fields["custom"] = custom
        self.targets(role).targets[path] = target
        file = self.target_file(path, content)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        if compressed:
            packed = ZstdCompressor().compress(content, ZstdCompressor.FLUSH_FRAME)
            file.with_name(f"{file.name}.zst").write_bytes(packed)
        return target

    def target_file(self, path: str, content: bytes) -> Path:
        """Where the server keeps the target `path` with that content."""
        file = self.folder / "targets" / path
        digest = hashlib.sha256(content).hexdigest()
        return file.with_name(f"{digest}.{file.name}") if self.consistent else file

    def publish(self) -> None:
        """Sign and write every changed targets role, then snapshot and timestamp."""
        snapshot: Snapshot = self.roles["snapshot"].signed
        for name in sorted(self.changed):
            data = self._bump(name)
            snapshot.meta[f"{name}.json"] = self.meta(self.roles[name].signed.version, data)
        self.changed.clear()
        data = self._bump("snapshot")
        self.roles["timestamp"].signed.snapshot_meta = self.meta(snapshot.version, data)
        self._bump("timestamp")

    def publish_root(self) -> None:
        """Sign the root with its old and new keys and write the next version."""
        self.root.version += 1
        self.root.expires = self._after(self.root_lifetime)
        previous = getattr(self, "_root_signers", [])
        self.sign("root", [*previous, *self.keys["root"]])
        self._root_signers = list(self.keys["root"])
        self.write("root")

    def rotate(self, role: str) -> None:
        """Give a top-level role new keys and publish a root that says so."""
        old = self.keys[role]
        self.keys[role] = [CryptoSigner.generate_ed25519() for _ in old]
        for signer in old:
            self.root.revoke_key(signer.public_key.keyid, role)
        for signer in self.keys[role]:
            self.root.add_key(signer.public_key, role)
        self.publish_root()

    def meta(self, version: int, data: bytes) -> MetaFile:
        """How snapshot or timestamp lists metadata whose bytes are `data`."""
        if not self.hashes:
            return MetaFile(version)
        return MetaFile(version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})

    def _bump(self, role: str) -> bytes:
        metadata = self.roles[role]
        metadata.signed.version += 1
        metadata.signed.expires = self.expiry
        self.sign(role)
        return self.write(role)

    def sign(self, role: str, signers: list[CryptoSigner] | None = None) -> None:
        """Replace a role's signatures by those of `signers`; default its own keys."""
        metadata = self.roles[role]
        metadata.signatures.clear()
        for signer in self.keys[role] if signers is None else signers:
            metadata.sign(signer, append=True)

    def write(self, role: str) -> bytes:
        """Write a role as it is, signed or not; returns the bytes."""
        data = self.roles[role].to_bytes()
        self.path_of(role).write_bytes(data)
        return data

    def path_of(self, role: str, version: int | None = None) -> Path:
        """The file a client asks for, of the role's present version by default."""
        number = version or self.roles[role].signed.version
        versioned = role != "timestamp" and (self.consistent or role == "root")
        quoted = urllib.parse.quote(role, "")
        name = f"{number}.{quoted}.json" if versioned else f"{quoted}.json"
        return self.folder / "metadata" / name

    def freeze(self) -> dict[str, bytes]:
        """The metadata folder as it is now, for a mirror that goes back to it."""
        return {file.name: file.read_bytes() for file in (self.folder / "metadata").iterdir()}

    def thaw(self, frozen: dict[str, bytes]) -> None:
        """Serve what `freeze` returned, and nothing else."""
        for file in (self.folder / "metadata").iterdir():
            file.unlink()
        for name, data in frozen.items():
            (self.folder / "metadata" / name).write_bytes(data)

    def snapshot_of(self, role: str) -> Metadata[Any]:
        """A copy of a role to keep while the original goes on changing."""
        return copy.deepcopy(self.roles[role])


def holdfast_repo(folder: Path, *components: str, **options: Any) -> TufRepo:
    """A repository with the roles of our feed: releases, rollout, one per component."""
    repo = TufRepo(folder, **options)
    repo.delegate("releases", ["releases/*.json"])
    repo.delegate("rollout", ["rollout/*.json"])
    for name in components:
        repo.delegate(name, [f"components/{name}/*/*"])
    repo.publish()
    return repo
