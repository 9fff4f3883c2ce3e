"""Verify a handover from the vendor's root up, and decide again that it is for this host.

The stager keeps its own record of the metadata versions it has seen, so a
fetcher that was taken over can't replay an older feed to it, and it asks
feed.rollout itself, so the fetcher can't choose either.
"""

from __future__ import annotations

from pathlib import Path

from tuf.api.metadata import TargetFile

from agent.channel import Host
from agent.layout import Layout
from agent.stager import incoming
from feed import manifest, rollout
from feed.errors import TrustError
from feed.filesource import FileSource
from feed.manifest import Increment, Release
from feed.rollout import Offer
from feed.trust import TrustedFeed


class Handed:
    """A verified handover: what was signed, and where its bytes lie."""

    def __init__(self, feed: TrustedFeed, folder: Path) -> None:
        self._feed = feed
        self.folder = folder

    def signed(self, path: str) -> TargetFile:
        """The signed length and digest of `path`.

        Raises TrustError: nobody with the right to sign it has.
        """
        found = self._feed.find(path)
        if found is None:
            raise TrustError(f"{path} isn't signed by anybody who may sign it")
        return found

    def read(self, path: str, *, limit: int) -> bytes:
        """A small signed file."""
        target = self.signed(path)
        return incoming.read(
            self.folder,
            f"targets/{path}",
            length=target.length,
            digest=target.hashes["sha256"],
            limit=limit,
        )

    def payload(self, item: manifest.Component) -> TargetFile:
        """The signed full payload of a component.

        Raises TrustError: its role signs another content than the release says.
        """
        path = manifest.payload_path(item.name, item.version)
        target = self.signed(path)
        if (target.length, target.hashes.get("sha256")) != (item.length, item.digest):
            raise TrustError(f"{path}: the component's role and the release disagree on its digest")
        return target

    def increment(self, name: str, *, old: str, new: str) -> tuple[TargetFile, Increment]:
        """The signed incremental from `old` to `new`."""
        path = manifest.increment_path(name, old=old, new=new)
        target = self.signed(path)
        return target, manifest.parse_increment(target.custom, path=path)


def verify(layout: Layout, folder: Path) -> Handed:
    """Verify the metadata in `folder` against the stager's own trust state.

    Raises TrustError.
    """
    metadata = layout.staging / "metadata"
    incoming.copy_metadata(folder, metadata)
    feed = TrustedFeed(
        layout.stager_trust,
        metadata.as_uri(),
        (folder / "targets").as_uri(),
        layout.trust_root.read_bytes(),
        FileSource(),
        idle_check=False,
    )
    feed.refresh()
    return Handed(feed, folder)


def _release(handed: Handed, release_id: str) -> Release:
    path = manifest.release_path(release_id)
    data = handed.read(path, limit=manifest.MANIFEST_BYTES_MAX)
    return manifest.parse(data, expected_id=release_id)


def offered(handed: Handed, host: Host, *, now: float) -> tuple[Release | None, Offer]:
    """What the signed plan offers this host; no release when that is nothing.

    Raises TrustError or ManifestError.
    """
    plan = rollout.parse(
        handed.read(manifest.rollout_path(host.region), limit=rollout.PLAN_BYTES_MAX),
        region=host.region,
    )
    wanted = rollout.target(
        plan,
        active=host.active_release,
        host_id=host.host_id,
        quarantine=host.quarantine,
        now=now,
    )
    release = _release(handed, wanted).for_host(host.traits) if wanted else None
    offer = rollout.decide(
        plan,
        release,
        host_id=host.host_id,
        platform=host.platform,
        agent_version=host.agent_version,
        active_id=host.active_release,
        active=host.digests,
        filenames=host.filenames,
        quarantine=host.quarantine,
        now=now,
    )
    return release, offer
